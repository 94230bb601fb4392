"""`python -m benchmarks.walk` (`make bench-walk`): compares our loops with hand-written SQL.

Each comparison is measured several times, our side and the other side alternately, on the same server and in the same
process. Figures are medians. The share of the checkpoint and the
memory are measured too. QUICK=1 uses fewer rows.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks import byhand, ours
from benchmarks.hands import workers
from benchmarks.report import Report, Row, at_least, at_most, quick, refuse_arguments
from benchmarks.tables import Bench, empty_copy, prepare, server_version, vacuum
from worker import load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.launch import tune_garbage_collector
from worker.ledger.checkpoint import Checkpoints
from worker.testing.runner import JobRunner
from worker.types import Database

Side = Callable[[], Awaitable[int]]
Before = Callable[[Bench], Awaitable[None]]

ROUNDS = 3
_UPDATE = "UPDATE bench_reader SET score = score + 1"
_DELETE = "DELETE FROM bench_reader"


class Scale:
    """The size of the benchmark: full, or reduced by QUICK=1."""

    def __init__(self) -> None:
        self.rows = 200_000 if quick() else 1_000_000
        self.rounds = ROUNDS
        self.seed_rows = 3_000 if quick() else 10_000
        self.deep_rows = 1_000_000 if quick() else 10_000_000


async def measure(side: Side, rows: int, bench: Bench, before: Before) -> float:
    """Return the rows/s of one run."""
    await before(bench)
    gc.collect()
    began = time.perf_counter()
    done = await side()
    assert done == rows, f"{done} rows instead of {rows}"
    return rows / (time.perf_counter() - began)


async def in_turn(bench: Bench, scale: Scale, before: Before, *sides: Side) -> list[float]:
    """Return the median rows/s of each side, measured alternately."""
    found: list[list[float]] = [[] for _ in sides]
    for round_ in range(scale.rounds):
        order = range(len(sides)) if round_ % 2 == 0 else reversed(range(len(sides)))
        for place in order:
            found[place].append(await measure(sides[place], bench.rows, bench, before))
    return [statistics.median(each) for each in found]


async def _vacuumed(bench: Bench) -> None:
    await vacuum(bench)


async def _copy_emptied(bench: Bench) -> None:
    await empty_copy(bench)
    await vacuum(bench)


async def _refilled(bench: Bench) -> None:
    await prepare(bench)


async def comparisons(bench: Bench, scale: Scale) -> AsyncIterator[Row]:
    """Run one measurement after the other."""
    run = bench.run_job
    for size, bar in ((1_000, 0.9), (5_000, 0.95)):
        await prepare(bench)
        mine, other = await in_turn(
            bench,
            scale,
            _vacuumed,
            lambda size=size: run(ours.update_in_chunks, size),  # type: ignore[misc]
            lambda size=size: byhand.keyset_update(bench, size),  # type: ignore[misc]
        )
        what = f"chunks + bulk.update, {size:,} a batch"
        yield at_least(what, "rows/s", mine, "keyset + UPDATE FROM unnest", other, bar)

    await prepare(bench)
    mine, other = await in_turn(
        bench,
        scale,
        _vacuumed,
        lambda: run(ours.update_by_columns, 1_000),
        lambda: byhand.keyset_update(bench, 1_000),
    )
    what = "the same, rows given as columns, 1,000 a batch"
    yield at_least(what, "rows/s", mine, "keyset + UPDATE FROM unnest", other, 0.9)

    await prepare(bench)
    mine, other = await in_turn(
        bench, scale, _vacuumed, lambda: run(ours.change_objects, 1_000), lambda: byhand.keyset_orm(bench, 1_000)
    )
    yield at_least("chunks, ORM objects changed, 1,000 a batch", "rows/s", mine, "ORM unit of work", other, 3)
    began = time.perf_counter()
    await byhand.seed_offset(bench, 100, first=bench.rows // 2, rows=scale.seed_rows)
    seed = scale.seed_rows / (time.perf_counter() - began)
    yield at_least("the same", "rows/s", mine, "seed's OFFSET loop, half way", seed, 20)

    for what, mine_, statement, before, bar in (
        ("sweep update, 10,000 a batch", ours.update_by_sweep, _UPDATE, _vacuumed, 0.7),
        ("sweep delete, 10,000 a batch", ours.delete_by_sweep, _DELETE, _refilled, 0.4),
    ):
        await prepare(bench)
        mine, hand, giant = await in_turn(
            bench,
            scale,
            before,
            lambda job=mine_: run(job, 10_000),  # type: ignore[misc]
            lambda statement=statement: byhand.ranges(bench, 10_000, statement),  # type: ignore[misc]
            lambda statement=statement: byhand.giant(bench, statement),  # type: ignore[misc]
        )
        yield at_least(what, "rows/s", mine, "ranges, asyncpg", hand, 0.95)
        yield at_least(what, "rows/s", mine, "one statement", giant, bar)

    await prepare(bench)
    mine, other = await in_turn(
        bench, scale, _vacuumed, lambda: run(ours.read_by_stream, 5_000), lambda: byhand.cursor_read(bench, 5_000)
    )
    yield at_least("stream, read only, 5,000 a partition", "rows/s", mine, "cursor, asyncpg", other, 0.9)
    mine, other = await in_turn(
        bench,
        scale,
        _copy_emptied,
        lambda: run(ours.upsert_by_stream, 5_000),
        lambda: byhand.cursor_upsert(bench, 5_000),
    )
    yield at_least("stream + bulk.upsert, 5,000 a partition", "rows/s", mine, "two asyncpg connections", other, 0.9)

    mine, other = await in_turn(
        bench,
        scale,
        _copy_emptied,
        lambda: ours.bulk_insert(bench, 10_000),
        lambda: byhand.copy_insert(bench, 10_000),
    )
    yield at_least("bulk.insert, 10,000 a batch", "rows/s", mine, "copy_records_to_table", other, 0.9)
    await empty_copy(bench)
    began = time.perf_counter()
    await byhand.seed_insert(bench, 10_000, 3 * scale.seed_rows)
    seed = 3 * scale.seed_rows / (time.perf_counter() - began)
    yield at_least("the same", "rows/s", mine, "seed's insert().values(list)", seed, 20)

    mine, other = await in_turn(
        bench,
        scale,
        _copy_emptied,
        lambda: run(ours.copy_by_sweep, 10_000),
        lambda: byhand.ranges(bench, 10_000, byhand.COPY),
    )
    yield at_least("table to table, 10,000 a range", "rows/s", mine, "INSERT SELECT ranges, asyncpg", other, 0.95)

    for size, limit in ((1_000, 5.0), (10_000, 1.0)):
        await prepare(bench)
        share = await checkpoint_share(bench, scale, size)
        yield at_most(f"checkpoint in chunks + bulk.update, {size:,} a batch", "% of a batch", share, limit)

    yield await depth(bench, scale)
    for kind in ("chunks", "stream", "sweep"):
        yield at_most(f"memory, {kind}, 10,000 to {scale.deep_rows:,} rows", "MB", growth(bench, scale, kind), 30)


async def comparisons_of_hands(bench: Bench, scale: Scale) -> AsyncIterator[Row]:
    """Compare two hands with one and with hand-written loops, and four with one where the work is elsewhere."""
    await prepare(bench)
    async with workers(bench, 2) as pair:
        for what, job, size, by_hand, bars in (
            (
                "chunks + bulk.update, 1,000 a batch, two hands",
                ours.update_together,
                1_000,
                lambda: byhand.keyset_update(bench, 1_000),
                (1.5, 1.0),
            ),
            (
                "chunks, ORM objects, 1,000 a batch, two hands",
                ours.change_objects_together,
                1_000,
                lambda: byhand.keyset_orm(bench, 1_000),
                (1.0, 1.7),
            ),
            (
                "sweep update, 10,000 a batch, two hands",
                ours.sweep_together,
                10_000,
                lambda: byhand.ranges(bench, 10_000, _UPDATE),
                (1.0, 1.3),
            ),
        ):
            two, one, hand = await in_turn(
                bench,
                scale,
                _vacuumed,
                lambda job=job, size=size: pair.run(job, size, 2),  # type: ignore[misc]
                lambda job=job, size=size: pair.run(job, size, 1),  # type: ignore[misc]
                by_hand,
            )
            yield at_least(what, "rows/s", two, "hand-written, one connection", hand, bars[0])
            yield at_least(what, "rows/s", two, "one hand", one, bars[1])
    async with workers(bench, 4) as four:
        size = max(1, bench.rows // 400)
        many, one = await in_turn(
            bench,
            scale,
            _vacuumed,
            lambda: four.run(ours.call_together, size, 4),
            lambda: four.run(ours.call_together, size, 1),
        )
        yield at_least("chunks, 10 ms elsewhere for each batch, four hands", "rows/s", many, "one hand", one, 3.6)


async def checkpoint_share(bench: Bench, scale: Scale, size: int) -> float:
    """Return the share of a walk's time that the checkpoint takes, per cent.

    It is one UPDATE in the batch's transaction, timed where it is sent.
    """
    spent, whole = 0.0, 0.0
    move = Checkpoints.move

    async def timed(self: Checkpoints, *args: Any, **options: Any) -> None:
        nonlocal spent
        began = time.perf_counter()
        await move(self, *args, **options)
        spent += time.perf_counter() - began

    Checkpoints.move = timed  # type: ignore[method-assign]
    try:
        for _ in range(scale.rounds):
            began = time.perf_counter()
            await bench.run_job(ours.update_in_chunks, size)
            whole += time.perf_counter() - began
            await vacuum(bench)
    finally:
        Checkpoints.move = move  # type: ignore[method-assign]
    return 100 * spent / whole


async def depth(bench: Bench, scale: Scale) -> Row:
    """Compare the first tenth of a long walk with the last."""
    deep = Bench(bench.database, bench.run_job, scale.deep_rows)
    await prepare(deep)
    marks: list[float] = [time.perf_counter()]
    ctx = bench.run_job.context()
    tenth = deep.rows // 10
    async for batch in ctx.chunks(ours.COLUMNS, size=5_000, lock=False):
        if batch.last_key % tenth:
            continue
        marks.append(time.perf_counter())
    await ctx._attempt.succeed()
    await ctx._attempt.close()
    first, last = marks[1] - marks[0], marks[-1] - marks[-2]
    what = f"last tenth of {deep.rows:,} rows against the first"
    return Row(what, "rows/s", tenth / last, {"first tenth": tenth / first}, last / first, "≤ 1.1", last / first <= 1.1)


def growth(bench: Bench, scale: Scale, kind: str) -> float:
    """Return by how many MB the peak memory of a walk over all rows exceeds that of a walk over 10,000."""

    def peak(rows: int) -> int:
        command = [sys.executable, "-m", "benchmarks.rss", kind, str(rows)]
        urls = {"DATABASE_URL": bench.run_job.settings.database.url, "REDIS_URL": bench.run_job.settings.redis.url}
        ran = subprocess.run(command, env=urls, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stdout)

    few = peak(10_000)
    return (peak(scale.deep_rows) - few) / 1024


async def main() -> int:
    """Run all measurements. Return the exit code."""
    refuse_arguments(__doc__)
    scale = Scale()
    with services() as running:
        settings = load_settings(
            environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url},
            overrides={"database": {"statement_timeout_seconds": 0}},
        )
        database = Database(settings, "bench")
        await migrate(database)
        tune_garbage_collector()  # as in a worker
        bench = Bench(database, JobRunner(database, settings), scale.rows)
        report = Report("walk", f"{scale.rows:,} rows, medians of {scale.rounds} alternated runs")
        async for row in comparisons(bench, scale):
            report.add([row])
        async for row in comparisons_of_hands(bench, scale):
            report.add([row])
        versions = {"postgresql": await server_version(database)}
        await database.close()
    return report.finish(versions)


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(main()))
