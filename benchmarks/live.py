"""`python -m benchmarks.live` (`make bench-live`): the effect of a walk on an application that uses the same table.

A load of short transactions at a fixed rate (`benchmarks/load.py`, a separate process, which counts each latency from
the due time) runs all the time. A walk, an ordinary job in a worker process, is paused and resumed alternately by
operator commands, so that other load on the machine affects both sides. A figure is the median of the rounds; the
moments of pausing and resuming are excluded. The walk is measured with a pace, and without one: batches of 50,000 rows
and no throttle, which shows the effect of a pace. At the end, the benchmark checks that no write of the load is
missing.

RATE is 200 transactions a second, of five messages each: a tenth of two cores. PostgreSQL, the load and the walk share
the cores; a load that filled them would measure its own queue. The server uses fsync, as in production.

PACE is a typical setting of an operator. A transaction that runs during a batch shares the processors and the disk with
it, and the p99 shows the slowest hundredth. So batches are short (20 ms, after which a locked row is free again) and
few (2,000 rows/s are about four batches a second: a table of 100 million rows takes 14 hours). If lock waiters or
active sessions show that the application is overloaded, the walk waits.

The worker runs with nice 10, because in production it runs on another machine, and competes only inside PostgreSQL,
whose processes keep their priority. If other programs use the same cores, the p99 is not reliable: check "no walk"
first. QUICK=1 uses fewer rows and rounds.
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
from benchmarks.report import Report, Row, quick, refuse_arguments
from benchmarks.tables import Bench, prepare, server_version
from worker import Client, Job, JobCancelled, Run, Settings, load_settings
from worker.db.migrate import migrate
from worker.embedded import Services, services
from worker.ledger import Ledger
from worker.testing.runner import JobRunner
from worker.types import Database

RATE = 200
#: A typical setting of an operator for walks during normal operation.
PACE = {
    "LONGHAUL_BATCH__TARGET_SECONDS": "0.02",
    "LONGHAUL_BATCH__FIRST_SIZE": "100",
    "LONGHAUL_BATCH__MIN_SIZE": "20",
    "LONGHAUL_THROTTLE__MAX_ROWS_PER_SECOND": "2000",
    "LONGHAUL_THROTTLE__MAX_LOCK_WAITERS": "2",
    "LONGHAUL_THROTTLE__MAX_ACTIVE_SESSIONS": "6",
}
#: As in production: a commit waits for the disk.
DURABLE = {"fsync": "on", "full_page_writes": "on"}
BAR = 1.3
#: How often the job walks the table: enough for the whole measurement.
ENDLESS = 1_000
SETTLE_SECONDS = 0.2
NO_PACE = 50_000


class Scale:
    """The size of the benchmark: full, or reduced by QUICK=1."""

    def __init__(self) -> None:
        small = quick()
        self.rows = 200_000 if small else 1_000_000
        self.turns = 6 if small else 12
        self.turns_without_pace = 1 if small else 3
        self.seconds = 2.0 if small else 4.0


@dataclass(frozen=True)
class Case:
    """The settings of a walk during the load."""

    name: str
    job: Job[..., int]
    size: Size
    pace: dict[str, str]
    turns: int


KINDS = {"chunks + bulk.update": walk_on_in_chunks, "sweep update": walk_on_by_sweep}


@dataclass(frozen=True)
class Turn:
    """A period with or without a walk, and the progress of the walk in it."""

    first: float
    last: float
    rows: int
    batches: int

    def percentile(self, ended: list[tuple[float, float]], cent: int) -> float:
        """Return a percentile of the latencies of the transactions that were due in the period."""
        return statistics.quantiles([ms for due, ms in ended if self.first <= due < self.last], n=100)[cent - 1]


@dataclass(frozen=True)
class ThrottleContext:
    """Medians of the rounds: latencies with the walk and while it is paused, and the walk's speed."""

    p50: float
    p99: float
    p50_alone: float
    p99_alone: float
    rows_per_second: float
    rows_per_batch: float


class Live:
    """The runs.

    Args:
        bench: the database of the benchmark.
        running: the servers.
        settings: settings of the client.
        scale: size of the benchmark.
    """

    def __init__(self, bench: Bench, running: Services, settings: Settings, scale: Scale) -> None:
        self._bench = bench
        self._running = running
        self._settings = settings
        self._scale = scale

    async def measure(self, case: Case) -> ThrottleContext:
        """Run the load during a walk that is paused and resumed alternately."""
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
        assert not any(turn.rows for turn in paused), "a paused walk has continued"

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
        """Return the numbers of committed rows and batches."""
        found = await Ledger(self._bench.database).list_runs(run_id=run.id)
        return (found[0].rows, sum(step.batches for step in found[0].steps)) if found else (0, 0)

    async def _until(self, run: Run[int], reached: Callable[[tuple[int, int]], bool]) -> None:
        async with asyncio.timeout(60):
            while not reached(await self._done(run)):
                await asyncio.sleep(0.05)

    async def _nothing_lost(self, transactions: int) -> None:
        """Check that every write of the load is present, though both write to the same rows."""
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
        """Run a worker as in production; the walk is its only job."""
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
    """Run all measurements. Return the exit code."""
    refuse_arguments(__doc__)
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
