"""`python -m benchmarks.idle` (`make bench-idle`): the cost of 10,000 runs that cannot begin, for an idle worker.

One worker process has 10,000 runs of a paused job, or 10,000 runs that wait for one place under a limit. Measured are
its CPU time, its commands, and the time from the enqueueing of another job to the first line of its function.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.report import Report, Row, at_most, quick, refuse_arguments
from benchmarks.soak import worker
from worker import Client, JobContext, Settings, job, load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.queue import keys
from worker.types import Database

_SECONDS = 5 if quick() else 15
_CPU_PERCENT = 1.0
_START_MS = 20.0
_FREE = "benchmark:free"


@job
async def held(ctx: JobContext, n: int) -> int:
    """A job that is paused."""
    return n


@job(concurrency=1)
async def waits(ctx: JobContext, n: int) -> int:
    """A job of which one runs, until the end of the measurement."""
    while not await ctx.redis.exists(_FREE):
        await asyncio.sleep(5)
    return n


@job
async def other(ctx: JobContext) -> float:
    """Return the time at which it begins."""
    return time.time()


class Idle:
    """The measurements of one worker.

    Args:
        settings: settings of both servers.
        redis: a connection.
        runs: number of runs that cannot begin.
    """

    def __init__(self, settings: Settings, redis: Redis, runs: int) -> None:
        self._settings = settings
        self._redis = redis
        self._runs = runs

    async def measure(self, kind: str) -> list[Row]:
        """Return the rows of one kind of runs: `none`, `paused` or `waiting`."""
        redis, runs = self._redis, self._runs
        await redis.flushall()
        environment = os.environ | {
            "DATABASE_URL": self._settings.database.url,
            "REDIS_URL": self._settings.redis.url,
        }
        with tempfile.TemporaryFile("w+") as log, worker(environment, log, packages='["benchmarks.idle"]') as process:
            await _until(lambda: redis.exists(keys.WORKERS))
            async with Client(self._settings) as client:
                if kind == "paused":
                    await redis.sadd(keys.PAUSED, "held")
                    await self._enqueue(client, held.name)
                    await _until(lambda: self._has(redis.hlen(keys.PARKED_RUNS + "held"), runs))
                elif kind == "waiting":
                    await self._enqueue(client, waits.name)
                    await _until(lambda: self._has(redis.zcard(keys.HELD + "waits"), runs - 1))
                await asyncio.sleep(3)  # the mirror and the health line of what was enqueued
                cpu, commands, began = _cpu_seconds(process.pid), await self._commands(), time.monotonic()
                await asyncio.sleep(_SECONDS)
                seconds = time.monotonic() - began
                percent = 100 * (_cpu_seconds(process.pid) - cpu) / seconds
                rate = (await self._commands() - commands) / seconds
                starts = []
                for _ in range(50):
                    enqueued = time.time()
                    run = await client.enqueue(other)
                    starts.append(1000 * (await run.result(timeout=60) - enqueued))
            await redis.set(_FREE, 1)
        name = "no other runs" if kind == "none" else f"{runs:,} {kind} runs"
        return [
            at_most(f"{name}: CPU of the idle worker", "% of a core", percent, _CPU_PERCENT),
            Row(f"{name}: commands of the idle worker and of this process", "a second", rate),
            at_most(f"{name}: start of another job, median", "ms", statistics.median(starts), _START_MS),
            Row(f"{name}: start of another job, maximum of 50", "ms", max(starts)),
        ]

    async def _enqueue(self, client: Client, name: str) -> None:
        for first in range(0, self._runs, 1_000):
            await client.enqueue_many(name, [{"n": n} for n in range(first, first + 1_000)])

    async def _has(self, count: Awaitable[int], wanted: int) -> bool:
        return await count >= wanted

    async def _commands(self) -> int:
        return int((await self._redis.info("stats"))["total_commands_processed"])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _until(look: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(300):
        while not await look():
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[Redis]:
    database, redis = Database(settings, "idle"), Redis.from_url(settings.redis.url)
    try:
        await migrate(database)
        yield redis
    finally:
        await redis.aclose()
        await database.close()


async def run(settings: Settings, report: Report, runs: int) -> int:
    """Measure on given servers. Return the exit code."""
    async with _connected(settings) as redis:
        idle = Idle(settings, redis, runs)
        for kind in ("none", "paused", "waiting"):
            report.add(await idle.measure(kind))
        version = str((await redis.info("server")).get("valkey_version"))
    return report.finish({"valkey": version}, keep=not quick())


def main() -> int:
    """Start the servers, and measure. Return the exit code."""
    refuse_arguments(__doc__)
    runs = 2_000 if quick() else 10_000
    with services(environment={}) as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        return asyncio.run(run(settings, Report("idle", f"{runs:,} runs that cannot begin, one idle worker"), runs))


if __name__ == "__main__":
    sys.exit(main())
