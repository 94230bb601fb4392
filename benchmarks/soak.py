"""`python -m benchmarks.soak` (`make soak`): runs a million jobs through one worker, and checks for growth.

JOBS=200000 uses fewer jobs. The jobs cover all outcomes and options (`soak_jobs.py`): success, failure, retry,
cancellation, expiry, unique jobs, limits, rates, delays, priorities, chains, groups, and the ledger. The soak starts
its own servers. After each tenth, when the queue is empty, it reads all keys; and again at the end, when all results
have expired and old data was pruned, as by the hourly prune. If something has grown, the exit code is 1, and the table
shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from redis.asyncio import Redis
from sqlalchemy import text

from benchmarks.report import Report, Row, at_most, refuse_arguments
from benchmarks.soak_jobs import BLOCK, enqueue_block
from benchmarks.tables import Bench, prepare
from worker import Client, Settings, load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.queue import keys
from worker.testing.runner import JobRunner
from worker.types import Database

_MARKS = 10
_BACKLOG = 20_000
_LOOK_SECONDS = 0.05
_LONGEST_SECONDS = 1800.0
#: Mirrors live for a minute after the end of their runs.
_PATIENCE_SECONDS = 120.0
_KEEP_RESULT_SECONDS = 2
_WORKER_MB = 10.0
_SERVER_MB = 5.0
#: Keys that may remain at the end, with their largest counts, by the rules of docs/reference/keys.md.
_BY_RULE = {
    "arq:queue:health-check": 1,  # the last health check of a worker
    keys.JOBS: 1,  # a field for each job and state
    keys.WORKERS: 1,
    keys.EVENTS: 1,  # the last 10,000
    keys.PRUNED: 1,
}


@dataclass
class ThrottleContext:
    """The state at one moment.

    Attributes:
        jobs: number of enqueued jobs.
        keys: DBSIZE.
        used_mb: memory of the server.
        worker_mb: resident memory of the worker.
        counts: keys of each form of `keys.SCHEMA`.
        bytes: MEMORY USAGE of them together.
        unknown: keys that are not in the schema.
    """

    jobs: int
    keys: int
    used_mb: float
    worker_mb: float
    counts: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        forms = ", ".join(f"{name} {self.counts[name]:,} ({size:,} B)" for name, size in self.bytes.most_common())
        return (
            f"{self.jobs:>9,} jobs: DBSIZE {self.keys:,}, used_memory {self.used_mb:.1f} MB, worker "
            f"{self.worker_mb:.1f} MB: {forms or 'nothing'}"
        )


async def look(redis: Redis, jobs: int, pid: int | None) -> ThrottleContext:
    """Read the size of every key, and the memory of the worker."""
    memory = await redis.info("memory")
    seen = ThrottleContext(
        jobs, await redis.dbsize(), memory["used_memory"] / 2**20, 0.0 if pid is None else rss_mb(pid)
    )
    batch: list[bytes] = []

    async def weigh() -> None:
        pipeline = redis.pipeline(transaction=False)
        for name in batch:
            pipeline.memory_usage(name, samples=0)
        for name, size in zip(batch, await pipeline.execute(), strict=True):
            known = keys.find(name.decode())
            if known is None:
                seen.unknown.append(name.decode())
            elif size is not None:  # None if the key has just expired
                seen.counts[known.name] += 1
                seen.bytes[known.name] += size
        batch.clear()

    async for name in redis.scan_iter(count=1_000):
        batch.append(name)
        if len(batch) >= 1_000:
            await weigh()
    await weigh()
    return seen


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


@contextmanager
def worker(environment: dict[str, str], log: IO[str], **settings: object) -> Iterator[subprocess.Popen[str]]:
    """Run a worker process; drain it at the end."""
    values = {"packages": '["benchmarks.soak_jobs"]', "max_jobs": 100, "result_ttl_seconds": _KEEP_RESULT_SECONDS}
    more = {f"LONGHAUL_WORKER__{name.upper()}": str(value) for name, value in (values | settings).items()}
    more |= {"LONGHAUL_LOG__LEVEL": "ERROR", "LONGHAUL_DATABASE__POOL_SIZE": "20"}
    command = [sys.executable, "-m", "worker", "run"]
    process = subprocess.Popen(command, env=environment | more, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


class Soak:
    """One soak.

    Args:
        settings: settings of both servers.
        jobs: number of jobs.
        say: prints a line.
    """

    def __init__(self, settings: Settings, jobs: int, say: Any) -> None:
        self.settings = settings
        self.jobs = jobs
        self.redis: Redis = Redis.from_url(settings.redis.url)
        self.database = Database(settings, "soak")
        self.rate = 0.0
        self._environment = os.environ | {"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url}
        self._say = say

    async def run(self, log: IO[str]) -> list[ThrottleContext]:
        """Run all jobs. Return the states before, after each tenth, and at the end."""
        await migrate(self.database)
        await prepare(Bench(self.database, JobRunner(self.database, self.settings), 30))
        await self.redis.flushall()
        seen = []
        with worker(self._environment, log) as process:
            await self._until(lambda: self.redis.exists(keys.WORKERS), process)
            seen.append(await self._seen(0, process.pid))
            # Abort commands of arq's clients for unknown jobs, two days old: no client removes them.
            await self.redis.zadd(keys.ABORT, {f"nobody {n}": 1_000 * (time.time() - 172_800) for n in range(1_000)})
            async with Client(self.settings) as client:
                began = time.monotonic()
                for first in range(0, self.jobs, BLOCK):
                    await self._until(self._has_room, process)
                    await enqueue_block(client, first)
                    if (first + BLOCK) % (self.jobs // _MARKS) < BLOCK:
                        await self._until(self._is_over, process)
                        seen.append(await self._seen(first + BLOCK, process.pid))
                self.rate = self.jobs / (time.monotonic() - began)
            await self._patiently(self._is_expired, process)
            seen.append(await self._seen(self.jobs, process.pid))
        return seen

    async def prune(self, log: IO[str]) -> ThrottleContext:
        """Run the prune of a worker, as if all data were too old and an hour had passed."""
        await self.redis.delete(keys.PRUNED)
        with worker(self._environment, log, dead_letter_ttl_days=0, run_retention_days=1e-9) as process:
            await self._patiently(self._is_pruned, process)
            await self._patiently(self._is_expired, process)
            return await self._seen(self.jobs, process.pid)

    async def runs(self) -> int:
        """Return the number of runs in the ledger."""
        async with self.database.session() as session:
            return int(await session.scalar(text("SELECT count(*) FROM worker.run")) or 0)

    async def close(self) -> None:
        """Close both connections."""
        await self.redis.aclose()
        await self.database.close()

    async def _seen(self, jobs: int, pid: int) -> ThrottleContext:
        seen = await look(self.redis, jobs, pid)
        self._say(str(seen))
        return seen

    async def _has_room(self) -> bool:
        return await self.redis.zcard("arq:queue") < _BACKLOG

    async def _is_over(self) -> bool:
        return not await self.redis.exists("arq:queue")

    async def _patiently(self, look: Any, process: subprocess.Popen[str]) -> None:
        """Wait until the keys that expire are gone, for a limited time. Remaining keys appear in the result."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._until(look, process)

    async def _is_expired(self) -> bool:
        names = (keys.RESULT, keys.RUN, keys.UNIQUE + "is_unique_for_a_time:")
        for name in names:
            async for _ in self.redis.scan_iter(match=f"{name}*", count=10_000):
                return False
        return True

    async def _is_pruned(self) -> bool:
        return not await self.redis.exists(keys.DEAD, keys.DEAD_AT, keys.ABORT) and not await self.runs()

    async def _until(self, look: Any, process: subprocess.Popen[str]) -> None:
        async with asyncio.timeout(_LONGEST_SECONDS):
            while not await look():
                if process.poll() is not None:
                    raise RuntimeError("the worker has ended")
                await asyncio.sleep(_LOOK_SECONDS)


def judged(seen: list[ThrottleContext], pruned: ThrottleContext, runs: tuple[int, int], jobs: int) -> Iterator[Row]:
    """Yield the measured values, each with its bar.

    Args:
        seen: states before, after each tenth, and at the end.
        pruned: state after the prune.
        runs: number of runs in the ledger before and after the prune.
        jobs: number of jobs.
    """
    before, first, last, over = seen[0], seen[1], seen[-2], seen[-1]
    grown = over.worker_mb - first.worker_mb
    yield at_most(f"memory of the worker, grown from {first.jobs:,} jobs on", "MB", grown, _WORKER_MB)
    most = max(one.worker_mb for one in seen[1:])
    yield Row("memory of the worker, at most", "MB", most)
    yield Row(f"keys after {first.jobs:,} jobs, queue empty, results alive", "", first.keys)
    yield Row(f"keys after {last.jobs:,} jobs, queue empty, results alive", "", last.keys)
    letters = f"dead letters of {jobs:,} jobs (worker.dead_letter_ttl_days: 30), MEMORY USAGE"
    yield Row(letters, "MB", over.bytes[keys.DEAD] / 2**20)
    groups = sum(over.counts[name] for name in (f"{keys.GROUP}<id>", f"{keys.GROUP}<id>:done"))
    yield Row("groups (30 days)", "", groups)
    yield at_most("dead letters after the prune", "", pruned.counts[keys.DEAD], 0)
    yield at_most("orders to abort what is no job, after the prune", "", pruned.counts[keys.ABORT], 0)
    yield Row("runs of the ledger (worker.run_retention_days: 30)", "", runs[0])
    yield at_most("runs of the ledger after the prune", "", runs[1], 0)
    for name, count in pruned.counts.items():
        if not name.startswith(keys.GROUP) and count > _BY_RULE.get(name, 0):
            yield at_most(f"left: {name}", "keys", count, _BY_RULE.get(name, 0))
    for name in pruned.unknown[:5]:
        yield Row(f"left: {name}, which no table of keys has", "", 1, held=False)
    kept = sum(pruned.bytes.values()) / 2**20
    yield Row("what is left by its rule, MEMORY USAGE", "MB", kept)
    yield at_most("memory of the server, grown, beside that", "MB", pruned.used_mb - before.used_mb - kept, _SERVER_MB)


async def soak(settings: Settings, jobs: int, report: Report) -> int:
    """Run the soak on given servers. Return the exit code."""
    one = Soak(settings, jobs, report.say)
    try:
        with tempfile.TemporaryFile("w+") as log:
            try:
                seen = await one.run(log)
                before = await one.runs()
                pruned = await one.prune(log)
            except RuntimeError as error:
                log.seek(0)
                report.say(f"{error}: {log.read()[-2_000:]}")
                return 1
        report.say(f"{one.rate:,.0f} jobs a second, their enqueueing and {_MARKS} looks at all keys included")
        report.add(judged(seen, pruned, (before, await one.runs()), jobs))
        version = str((await one.redis.info("server")).get("valkey_version"))
        return report.finish({"valkey": version}, keep=jobs >= 1_000_000)
    finally:
        await one.close()


def main() -> int:
    """Start the servers, and run the soak. Return the exit code."""
    refuse_arguments(__doc__)
    jobs = max(_MARKS * BLOCK, int(os.environ.get("JOBS") or 1_000_000) // (_MARKS * BLOCK) * _MARKS * BLOCK)
    with services(environment={}) as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        return asyncio.run(soak(settings, jobs, Report("soak", f"{jobs:,} jobs through one worker")))


if __name__ == "__main__":
    sys.exit(main())
