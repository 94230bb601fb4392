"""`python -m benchmarks.walk` (`make bench-walk`): compares our loops with hand-written SQL.

`benchmarks/comparison.py` says how. The share of the checkpoint and the memory are measured too. QUICK=1 uses fewer
rows. ONLY=sweep runs the comparisons that have the word in their names, and writes no file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from benchmarks import byhand, ours
from benchmarks.comparison import SERVER_SETTINGS, Case, Peer, Rounds, compare, create_statistics
from benchmarks.hands import Workers, workers
from benchmarks.report import Report, Row, at_least, at_most, quick, refuse_arguments
from benchmarks.tables import Bench, empty_copy, prepare, server_version, vacuum
from worker import load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.launch import tune_garbage_collector
from worker.ledger.checkpoint import Checkpoints
from worker.testing.runner import JobRunner
from worker.types import Database

ONLY = os.environ.get("ONLY", "")
_UPDATE = "UPDATE bench_reader SET score = score + 1"
_DELETE = "DELETE FROM bench_reader"
#: The peer that can go on after a crash, as ours can.
_RESUMABLE = "the same with a cursor"


class Scale:
    """The size of the benchmark: full, or reduced by QUICK=1."""

    def __init__(self) -> None:
        self.rows = 100_000 if quick() else 1_000_000
        self.rounds = Rounds(5, 13) if quick() else Rounds(5, 9)
        self.seed_rows = 3_000 if quick() else 10_000
        self.deep_rows = 1_000_000 if quick() else 10_000_000


async def _vacuumed(bench: Bench) -> None:
    await vacuum(bench)


async def _copy_emptied(bench: Bench) -> None:
    await empty_copy(bench)
    await vacuum(bench)


async def _refilled(bench: Bench) -> None:
    await prepare(bench)


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the comparisons of one pair of hands."""
    run = bench.run_job
    for size, bar in ((1_000, 0.9), (5_000, 0.95)):
        yield Case(
            f"chunks + bulk.update, {size:,} a batch",
            partial(run, ours.update_in_chunks, size),
            [
                Peer("keyset + UPDATE FROM unnest", partial(byhand.keyset_update, bench, size), bar),
                Peer(_RESUMABLE, partial(byhand.keyset_update_resumable, bench, size), bar),
            ],
            _vacuumed,
        )
    yield Case(
        "chunks + bulk.update of columns, 1,000 a batch",
        lambda: run(ours.update_by_columns, 1_000),
        [
            Peer("keyset + UPDATE FROM unnest", lambda: byhand.keyset_update(bench, 1_000), 0.95),
            Peer(_RESUMABLE, lambda: byhand.keyset_update_resumable(bench, 1_000), 0.95),
        ],
        _vacuumed,
    )
    yield Case(
        "chunks, ORM objects changed, 1,000 a batch",
        lambda: run(ours.change_objects, 1_000),
        [
            Peer("ORM unit of work", lambda: byhand.keyset_orm(bench, 1_000), 3),
            Peer(
                "the same with one UPDATE and a cursor",
                lambda: byhand.objects_written_by_one_statement(bench, 1_000),
                0.9,
            ),
            Peer("objects read only", lambda: byhand.objects_read(bench, 1_000)),
        ],
        _vacuumed,
    )
    yield Case(
        "sweep update, 10,000 a batch",
        lambda: run(ours.update_by_sweep, 10_000),
        [
            Peer("ranges, asyncpg", lambda: byhand.ranges(bench, 10_000, _UPDATE)),
            Peer(_RESUMABLE, lambda: byhand.ranges_resumable(bench, 10_000, _UPDATE), 0.95),
            Peer("one statement", lambda: byhand.giant(bench, _UPDATE), 0.7),
        ],
        _vacuumed,
    )
    yield Case(
        "sweep delete, 10,000 a batch",
        lambda: run(ours.delete_by_sweep, 10_000),
        [
            Peer("ranges, asyncpg", lambda: byhand.ranges(bench, 10_000, _DELETE)),
            Peer(_RESUMABLE, lambda: byhand.ranges_resumable(bench, 10_000, _DELETE), 0.95),
            Peer("one statement", lambda: byhand.giant(bench, _DELETE), 0.4),
        ],
        prepare,
        is_repeatable=False,
    )
    yield Case(
        "stream, read only, 5,000 a partition",
        lambda: run(ours.read_by_stream, 5_000),
        [Peer("cursor, asyncpg", lambda: byhand.cursor_read(bench, 5_000), 0.9)],
        _vacuumed,
    )
    yield Case(
        "stream + bulk.upsert, 5,000 a partition",
        lambda: run(ours.upsert_by_stream, 5_000),
        [Peer("two asyncpg connections", lambda: byhand.cursor_upsert(bench, 5_000), 0.9)],
        _copy_emptied,
    )
    yield Case(
        "bulk.insert, 10,000 a batch",
        lambda: ours.bulk_insert(bench, 10_000),
        [
            Peer("copy_records_to_table", lambda: byhand.copy_insert(bench, 10_000)),
            Peer("COPY of dicts", lambda: byhand.copy_dicts(bench, 10_000), 0.9),
        ],
        _copy_emptied,
    )
    yield Case(
        "table to table, 10,000 a range",
        lambda: run(ours.copy_by_sweep, 10_000),
        [
            Peer("INSERT SELECT ranges, asyncpg", lambda: byhand.ranges(bench, 10_000, byhand.COPY)),
            Peer(_RESUMABLE, lambda: byhand.ranges_resumable(bench, 10_000, byhand.COPY), 0.95),
        ],
        _copy_emptied,
    )


def cases_of_two_hands(bench: Bench, pair: Workers) -> Iterator[Case]:
    """Yield the comparisons of two hands with one, and with hand-written loops."""
    by_hand, alone = "hand-written, one connection", "one hand"
    yield Case(
        "chunks + bulk.update, 1,000 a batch, two hands",
        partial(pair.run, ours.update_together, 1_000, 2),
        [
            Peer(by_hand, partial(byhand.keyset_update, bench, 1_000), 1.5),
            Peer(alone, partial(pair.run, ours.update_together, 1_000, 1), 1),
        ],
        _vacuumed,
    )
    yield Case(
        "chunks, ORM objects, 1,000 a batch, two hands",
        partial(pair.run, ours.change_objects_together, 1_000, 2),
        [
            Peer(by_hand, partial(byhand.keyset_orm, bench, 1_000), 1),
            Peer(alone, partial(pair.run, ours.change_objects_together, 1_000, 1), 1.7),
        ],
        _vacuumed,
    )
    yield Case(
        "sweep update, 10,000 a batch, two hands",
        partial(pair.run, ours.sweep_together, 10_000, 2),
        [
            Peer(by_hand, partial(byhand.ranges, bench, 10_000, _UPDATE), 1),
            Peer(alone, partial(pair.run, ours.sweep_together, 10_000, 1), 1.3),
            Peer("hand-written, two connections", partial(byhand.ranges_by_two, bench, 10_000, _UPDATE), 0.9),
        ],
        _vacuumed,
    )


def case_of_four_hands(bench: Bench, four: Workers) -> Case:
    """Return the comparison whose work is outside of PostgreSQL: 2,000 batches of 10 ms."""
    size = max(1, bench.rows // 2_000)
    return Case(
        "chunks, 10 ms elsewhere for each batch, four hands",
        lambda: four.run(ours.call_together, size, 4),
        [Peer("one hand", lambda: four.run(ours.call_together, size, 1), 3.6)],
        _vacuumed,
    )


async def comparisons(bench: Bench, scale: Scale) -> AsyncIterator[Row]:
    """Compare our loops with others."""
    for case in filter(_is_chosen, cases(bench)):
        await prepare(bench)
        for row in await compare(bench, case, scale.rounds):
            yield row
        if case.what.startswith("chunks, ORM objects"):
            yield await beside_the_seeds_loop(bench, scale, row.ours)
        if case.what.startswith("bulk.insert"):
            yield await beside_the_seeds_insert(bench, scale, row.ours)
    if ONLY and "hand" not in ONLY:
        return
    await prepare(bench)
    async with workers(bench, 2) as pair:
        for case in filter(_is_chosen, cases_of_two_hands(bench, pair)):
            for row in await compare(bench, case, scale.rounds):
                yield row
    async with workers(bench, 4) as four:
        for case in filter(_is_chosen, [case_of_four_hands(bench, four)]):
            for row in await compare(bench, case, scale.rounds):
                yield row


def _is_chosen(case: Case) -> bool:
    return ONLY in case.what


async def beside_the_seeds_loop(bench: Bench, scale: Scale, ours_: float) -> Row:
    """Compare with the seed's loop by OFFSET, half way through the table, once: it is slower by far."""
    began = time.perf_counter()
    await byhand.seed_offset(bench, 100, first=bench.rows // 2, rows=scale.seed_rows)
    seed = scale.seed_rows / (time.perf_counter() - began)
    return at_least("the same", "rows/s", ours_, "seed's OFFSET loop, half way", seed, 20)


async def beside_the_seeds_insert(bench: Bench, scale: Scale, ours_: float) -> Row:
    """Compare with the seed's insert, once: it is slower by far."""
    await empty_copy(bench)
    began = time.perf_counter()
    await byhand.seed_insert(bench, 10_000, 3 * scale.seed_rows)
    seed = 3 * scale.seed_rows / (time.perf_counter() - began)
    return at_least("the same", "rows/s", ours_, "seed's insert().values(list)", seed, 20)


async def measurements(bench: Bench, scale: Scale) -> AsyncIterator[Row]:
    """Measure the checkpoint's share, the last tenth of a long walk, and the memory of walks."""
    for size, limit in ((1_000, 5.0), (10_000, 1.0)):
        await prepare(bench)
        share = await checkpoint_share(bench, scale, size)
        yield at_most(f"checkpoint in chunks + bulk.update, {size:,} a batch", "% of a batch", share, limit)
    yield await depth(bench, scale)
    for kind in ("chunks", "stream", "sweep"):
        yield at_most(f"memory, {kind}, 10,000 to {scale.deep_rows:,} rows", "MB", growth(bench, scale, kind), 30)


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
        for _ in range(3):
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
    # Always embedded servers: the benchmark resets their statistics.
    with services(SERVER_SETTINGS, environment={}) as running:
        settings = load_settings(
            environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url},
            overrides={"database": {"statement_timeout_seconds": 0}},
        )
        database = Database(settings, "bench")
        await migrate(database)
        tune_garbage_collector()  # as in a worker
        bench = Bench(database, JobRunner(database, settings), scale.rows)
        await create_statistics(bench)
        report = Report("walk", f"{scale.rows:,} rows, medians of {scale.rounds.least} alternated rounds or more")
        async for row in comparisons(bench, scale):
            report.add([row])
        if not ONLY:
            async for row in measurements(bench, scale):
                report.add([row])
        versions = {"postgresql": await server_version(database)}
        await database.close()
    return report.finish(versions, keep=not ONLY)


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(main()))
