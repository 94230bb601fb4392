"""`python -m benchmarks.checkpoint`: checkpoint and COMMIT as two plain statements, against one message for both.

The two statements are the checkpoint and `COMMIT AND CHAIN`. The one message is `EXECUTE checkpoint; COMMIT; BEGIN`, in
which a division by zero prevents the COMMIT if another worker has taken the run over: it saves one round trip. Both
ways alternate in the same walk, two batches each, so that other load on the machine affects both equally. The figures
are medians over all batches.
docs/decisions/001-cursor-in-the-batch-transaction.md has the figures for which the plain statements were chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from asyncpg.exceptions import DuplicatePreparedStatementError
from sqlalchemy import Column, Integer, MetaData, Table, select, text

from benchmarks.report import refuse_arguments
from worker.batch.transaction import BatchTransaction
from worker.db.driver import literal
from worker.db.engine import Database
from worker.db.migrate import migrate
from worker.embedded import services
from worker.settings import load_settings
from worker.testing.runner import JobRunner

SIZES = (1_000, 10_000)
ROWS = 200_000
ROUNDS = int(os.environ.get("ROUNDS", "6"))
ONE, TWO = "one message", "two statements"
_TABLE = Table("bench_checkpoint", MetaData(), Column("id", Integer, primary_key=True), Column("score", Integer))
_PREPARE = """
PREPARE bench_checkpoint AS WITH moved AS (
    UPDATE worker.step
       SET cursor = $1::text::jsonb, rows = rows + $2::bigint, batches = batches + 1, done = $3::boolean,
           updated_at = pg_catalog.clock_timestamp()
     WHERE run_id = $4::text AND name = $5::text AND fence = $6::bigint RETURNING 1
) SELECT 1 / count(*) FROM moved
"""
_plain = BatchTransaction.commit


class Alternating:
    """Commits in one way or the other, and records the seconds between commits."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {ONE: [], TWO: []}
        self._number = 0
        self._at = 0.0
        self._is_prepared = False

    async def commit(self, transaction: Any, checkpoint: Any, *, begin_next: bool = False) -> None:
        """Commit a batch. The BEGIN of the next batch belongs to the way of the commit before, so only every second
        commit is recorded."""
        pair, place = divmod(self._number, 2)
        self._number += 1
        way = ONE if (pair + pair // 2) % 2 == 0 else TWO
        if way == ONE and not checkpoint.keywords["done"]:
            await self._commit_in_one_message(transaction, checkpoint)
        else:
            await _plain(transaction, checkpoint, begin_next=begin_next)
        now = time.perf_counter()
        if place == 1:
            self.seconds[way].append(now - self._at)
        self._at = now

    async def _commit_in_one_message(self, transaction: Any, checkpoint: Any) -> None:
        raw = await transaction.driver()
        with contextlib.suppress(DuplicatePreparedStatementError):
            if not self._is_prepared:
                self._is_prepared = True
                async with raw.transaction():  # the connection may know it from an earlier walk
                    await raw.execute(_PREPARE)
        ledger, values = checkpoint.func.__self__, checkpoint.keywords
        cursor, step = json.dumps(values["cursor"]), values["step"]
        shown = (cursor, values["rows"], values["done"], ledger._run_id, step.name, ledger._fence)
        await raw.execute(f"EXECUTE bench_checkpoint({', '.join(map(literal, shown))}); COMMIT; BEGIN")
        transaction._is_over = True


async def measure(database: Database, runner: JobRunner, size: int, *, write: bool) -> dict[str, list[float]]:
    """Walk the table in batches of a size. Return the seconds of the batches of each way."""
    ways = Alternating()

    async def commit(self: Any, checkpoint: Callable[[Any], Any], *, begin_next: bool = False) -> None:
        await ways.commit(self, checkpoint, begin_next=begin_next)

    BatchTransaction.commit = commit  # type: ignore[method-assign]
    try:
        ctx = runner.context("checkpoint")
        async for batch in ctx.chunks(select(_TABLE.c.id), size=size):
            if write:
                await batch.bulk.update(_TABLE, [{"id": key, "score": key} for key in batch])
        await ctx._attempt.close()
    finally:
        BatchTransaction.commit = _plain  # type: ignore[method-assign]
    async with database.engine.connect() as connection:
        options = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await options.execute(text("VACUUM bench_checkpoint"))
    return ways.seconds


async def main() -> None:
    """Measure both sizes, for a loop that only reads and for one that updates each row."""
    refuse_arguments(__doc__)
    with services() as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        database = Database(settings, "bench")
        await migrate(database)
        async with database.engine.begin() as connection:
            await connection.run_sync(_TABLE.metadata.create_all)
            await connection.execute(_TABLE.insert(), [{"id": n, "score": 0} for n in range(1, ROWS + 1)])
        runner = JobRunner(database, settings)
        for size in SIZES:
            for write in (False, True):
                found: dict[str, list[float]] = {ONE: [], TWO: []}
                for _ in range(ROUNDS):
                    for way, seconds in (await measure(database, runner, size, write=write)).items():
                        found[way] += seconds
                one, two = statistics.median(found[ONE]), statistics.median(found[TWO])
                print(
                    f"{size:>6} rows, {'update' if write else 'read only':9}: one message {one * 1e3:7.2f} ms, "
                    f"two statements {two * 1e3:7.2f} ms, gain {two / one - 1:+.1%} ({len(found[ONE])} batches each)"
                )
        await database.close()


if __name__ == "__main__":
    asyncio.run(main())
