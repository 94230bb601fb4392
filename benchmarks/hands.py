"""Walks by several hands: workers in processes of their own, each with one slot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import ours
from benchmarks.tables import Bench
from worker import Client, Job


class Workers:
    """Runs jobs by a queue.

    Args:
        client: Enqueues them.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, job: Job[..., int], size: int, hands: int) -> int:
        """Run a job to its end. Return its result."""
        return await (await self._client.enqueue(job, size=size, hands=hands)).result(timeout=3600)


@asynccontextmanager
async def workers(bench: Bench, count: int) -> AsyncIterator[Workers]:
    """Start workers on the servers of the benchmark, and warm them up."""
    settings = bench.run_job.settings
    environment: dict[str, Any] = {
        **os.environ,
        "DATABASE_URL": settings.database.url,
        "REDIS_URL": settings.redis.url,
        "LONGHAUL_WORKER__PACKAGES": '["benchmarks.ours"]',
        "LONGHAUL_WORKER__MAX_JOBS": "1",
        "LONGHAUL_LOG__LEVEL": "WARNING",
    }
    processes = [
        subprocess.Popen([sys.executable, "-m", "worker", "run", "--name", f"hand-{number}"], env=environment)
        for number in range(1, count + 1)
    ]
    try:
        async with Client(settings) as client:
            started = Workers(client)
            while len(await client.redis.hgetall("worker:workers")) < count:
                await started.run(ours.call_together, max(1, bench.rows // 20), 1)
            await started.run(ours.update_together, 1_000, count)
            yield started
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
