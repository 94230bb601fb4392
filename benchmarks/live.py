"""`python -m benchmarks.live` (`make bench-live`): what a walk does to the application that works on the same table.

A load of short transactions at a fixed rate (`benchmarks/load.py`, a process of its own, its latencies counted from the
moment that each was due) goes on all the time. Beside it a walk, an ordinary job in a worker process, is paused and
resumed by order, in turn, so that whatever else the machine does meets both sides; a figure is the median of the turns,
those in which it is being paused or resumed left out. So with a pace, and then without one: batches of 50,000 and no
throttle, which shows what a pace is for. At the end no write of the load may be missing.

RATE is 200 transactions a second, of five messages each: a tenth of two cores. PostgreSQL, the load and the walk share
these; a load that filled them would measure how it waits for itself. The server keeps what it commits (fsync), as one
with an application does.

PACE is what an operator would set. A transaction that meets a batch shares the processors and the disk with it, and the
p99 is that of the unluckiest hundredth: so batches are short (20 ms; a row that is locked is free again after that),
and few (2,000 rows/s are some four of them a second: a table of 100 million rows takes 14 hours). Lock waiters and
active sessions stop the walk where the application is in trouble already.

The worker runs with nice 10: on a machine of its own it would take nothing from the load's process, only from
PostgreSQL, whose processes are as they are. Beside test suites on the same cores a p99 can be anything: look at "no
walk" first. QUICK=1 takes fewer rows and turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import IO

from sqlalchemy import text

from benchmarks.ours import Size, walk_on_by_sweep, walk_on_in_chunks
from benchmarks.report import Report, Row, quick
from benchmarks.tables import Bench, prepare, server_version
from worker import Client, Job, JobCancelled, Run, Settings, load_settings
from worker.db.migrate import migrate
from worker.embedded import Services, services
from worker.ledger import Ledger
from worker.testing.runner import JobRunner
from worker.types import Database

RATE = 200
#: What an operator would set for walks beside an application.
PACE = {
    "LONGHAUL_BATCH__TARGET_SECONDS": "0.02",
    "LONGHAUL_BATCH__FIRST_SIZE": "100",
    "LONGHAUL_BATCH__MIN_SIZE": "20",
    "LONGHAUL_THROTTLE__MAX_ROWS_PER_SECOND": "2000",
    "LONGHAUL_THROTTLE__MAX_LOCK_WAITERS": "2",
    "LONGHAUL_THROTTLE__MAX_ACTIVE_SESSIONS": "6",
}
#: As a server that holds data has it: a commit waits for the disk.
DURABLE = {"fsync": "on", "full_page_writes": "on"}
BAR = 1.3
#: How often the job walks the table: more often than is measured.
ENDLESS = 1_000
SETTLE_SECONDS = 0.2
NO_PACE = 50_000


class Scale:
    """How much is done: all of it, or the part that QUICK=1 asks for."""

    def __init__(self) -> None:
        small = quick()
        self.rows = 200_000 if small else 1_000_000
        self.turns = 6 if small else 12
        self.turns_without_pace = 1 if small else 3
        self.seconds = 2.0 if small else 4.0


@dataclass(frozen=True)
class Case:
    """A walk beside the load."""

    name: str
    job: Job[..., int]
    size: Size
    pace: dict[str, str]
    turns: int


KINDS = {"chunks + bulk.update": walk_on_in_chunks, "sweep update": walk_on_by_sweep}


@dataclass(frozen=True)
class Turn:
    """A stretch of time with a walk, or without, and what the walk did in it."""

    first: float
    last: float
    rows: int
    batches: int

    def percentile(self, ended: list[tuple[float, float]], cent: int) -> float:
        """Return one of the latencies of what was due in it."""
        return statistics.quantiles([ms for due, ms in ended if self.first <= due < self.last], n=100)[cent - 1]


@dataclass(frozen=True)
class ThrottleContext:
    """Medians of the turns: with the walk, while it is paused, and how fast it went."""

    p50: float
    p99: float
    p50_alone: float
    p99_alone: float
    rows_per_second: float
    rows_per_batch: float


class Live:
    """The runs.

    Args:
        bench: where.
        running: the servers.
        settings: of the client.
        scale: how much is done.
    """

    def __init__(self, bench: Bench, running: Services, settings: Settings, scale: Scale) -> None:
        self._bench = bench
        self._running = running
        self._settings = settings
        self._scale = scale

    async def measure(self, case: Case) -> ThrottleContext:
        """Run the load beside a walk that is paused and resumed in turn."""
        await prepare(self._bench)
        walked: list[Turn] = []
        paused: list[Turn] = []
        async with self._worker(case) as client:
            with self._load() as load:
                await asyncio.to_thread(_hear, load, "ready")
                run = await client.enqueue(case.job, size=case.size, turns=ENDLESS)
                rows = 0
                for turn in range(case.turns):
                    await self._until(run, lambda done: done[0] > rows)  # noqa: B023
                    walked.append(await self._turn(run))
                    await client.command(client.redis.sadd("worker:paused", run.id))
                    async with asyncio.timeout(60):
                        while await run.status() != "paused":
                            await asyncio.sleep(0.02)
                    await asyncio.sleep(SETTLE_SECONDS)
                    paused.append(await self._turn(run))
                    rows, _ = await self._done(run)
                    if turn < case.turns - 1:
                        await client.command(client.redis.srem("worker:paused", run.id))
                _tell(load, "enough")
                ended = json.loads(await asyncio.to_thread(_hear, load, "["))
                await run.cancel()
                await client.command(client.redis.srem("worker:paused", run.id))
                with contextlib.suppress(JobCancelled):
                    await run.result(timeout=60)
        await self._nothing_lost(len(ended))
        assert not any(turn.rows for turn in paused), "a paused walk has gone on"

        def median(turns: list[Turn], cent: int) -> float:
            return statistics.median(turn.percentile(ended, cent) for turn in turns)

        return ThrottleContext(
            *(median(walked, 50), median(walked, 99), median(paused, 50), median(paused, 99)),
            statistics.median(turn.rows / (turn.last - turn.first) for turn in walked),
            sum(turn.rows for turn in walked) / max(1, sum(turn.batches for turn in walked)),
        )

    async def _turn(self, run: Run[int]) -> Turn:
        first, (rows, batches) = time.monotonic(), await self._done(run)
        await asyncio.sleep(self._scale.seconds)
        last, (rows_then, batches_then) = time.monotonic(), await self._done(run)
        return Turn(first, last, rows_then - rows, batches_then - batches)

    async def _done(self, run: Run[int]) -> tuple[int, int]:
        """Return the rows and batches that are committed."""
        found = await Ledger(self._bench.database).list_runs(run_id=run.id)
        return (found[0].rows, sum(step.batches for step in found[0].steps)) if found else (0, 0)

    async def _until(self, run: Run[int], reached: Callable[[tuple[int, int]], bool]) -> None:
        async with asyncio.timeout(60):
            while not reached(await self._done(run)):
                await asyncio.sleep(0.05)

    async def _nothing_lost(self, transactions: int) -> None:
        """Both work on the same rows: what the load has written has to be there."""
        async with self._bench.database.connection() as connection:
            visits = await connection.scalar(text("SELECT sum(visits - id % 100) FROM bench_reader"))
            noted = await connection.scalar(text("SELECT count(*) FROM bench_history"))
        assert visits == noted == transactions, f"{transactions} transactions, {noted} noted, {visits} visits"

    @contextlib.contextmanager
    def _load(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "benchmarks.load", str(RATE), str(self._bench.rows), "1"]
        load = subprocess.Popen(
            command, env=self._running.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            yield load
        finally:
            load.kill()
            load.wait()

    @contextlib.asynccontextmanager
    async def _worker(self, case: Case) -> AsyncIterator[Client]:
        """A worker as it is deployed; the walk is its only job."""
        async with Client(self._settings) as client:
            name = f"live-{time.monotonic_ns()}"
            command = ["nice", "-n", "10", sys.executable, "-m", "worker", "run", "--name", name]
            environment = {
                **self._running.environment(),
                "LONGHAUL_WORKER__PACKAGES": '["benchmarks.ours"]',
                **case.pace,
            }
            with tempfile.TemporaryFile("w+") as log:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                try:
                    async with asyncio.timeout(30):
                        while not await client.command(client.redis.hexists("worker:workers", name)):
                            assert process.poll() is None, _last_words(log)
                            await asyncio.sleep(0.05)
                    yield client
                    assert process.poll() is None, _last_words(log)
                finally:
                    process.terminate()
                    process.wait(30)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise RuntimeError("the load has ended: see its error above")


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    return log.read()[-1000:]


async def comparisons(live: Live, scale: Scale) -> AsyncIterator[Row]:
    """Measure one kind of loop after the other, with a pace and without."""
    for kind, job in KINDS.items():
        paced = await live.measure(Case(kind, job, "auto", PACE, scale.turns))
        without = await live.measure(Case(kind, job, NO_PACE, {}, scale.turns_without_pace))
        for name, seen, bar in (
            (f"{kind}, paced", paced, BAR),
            (f"{kind}, {NO_PACE:,} a batch, no pace", without, None),
        ):
            ratio = seen.p50 / paced.p50_alone
            yield Row(f"p50 beside {name}", "ms", seen.p50, {"no walk": paced.p50_alone}, ratio)
            ratio = seen.p99 / paced.p99_alone
            shown, held = ("", None) if bar is None else (f"≤ {bar:g}", ratio <= bar)
            yield Row(f"p99 beside {name}", "ms", seen.p99, {"no walk": paced.p99_alone}, ratio, shown, held)
        rate, others = paced.rows_per_second, {"no pace": without.rows_per_second}
        what = f"{kind}, paced: batches of {paced.rows_per_batch:,.0f}"
        yield Row(what, "rows/s", rate, others, None, "> 0", rate > 0)


async def main() -> int:
    """Measure all. Returns the exit code."""
    scale = Scale()
    with services(DURABLE) as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        database = Database(settings, "bench")
        await migrate(database)
        bench = Bench(database, JobRunner(database, settings), scale.rows)
        setting = (
            f"{RATE} transactions a second on {scale.rows:,} rows, "
            f"medians of {scale.turns} turns of {scale.seconds:g} s with the walk, and as many while it is paused"
        )
        report = Report("live", setting)
        async for row in comparisons(Live(bench, running, settings, scale), scale):
            report.add([row])
        versions = {"postgresql": await server_version(database)}
        await database.close()
    return report.finish(versions)


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(main()))
