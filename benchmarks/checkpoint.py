"""`python -m benchmarks.checkpoint`: the checkpoint and COMMIT in one message, against two plain statements.

Both ways walk the same table by the same loop on the same server, in turn, batch by batch: an even batch commits in one
way, an odd one in the other, and each pair swaps its order. So whatever else loads the machine loads both alike. The
figures are medians over all batches of a size; RULE is the gain from which the one message is kept.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, select, text

from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.migrate import migrate
from worker.embedded import services
from worker.settings import load_settings
from worker.testing.runner import JobRunner

RULE = 0.02
SIZES = (1_000, 10_000)
ROWS = 200_000
ROUNDS = int(os.environ.get("ROUNDS", "6"))
_TABLE = Table("bench_checkpoint", MetaData(), Column("id", Integer, primary_key=True), Column("score", Integer))

Commit = Callable[..., Awaitable[None]]
one_message: Commit = Driver.commit_after


async def two_statements(self: Any, statement: str, *, begin: bool) -> None:
    """Send the checkpoint, then COMMIT; the next transaction begins with its first statement."""
    await self.raw.execute(statement)
    await self.commit()


class Alternating:
    """Commits in one way or the other, and notes the seconds from one commit to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"one message": [], "two statements": []}
        self._number = 0
        self._at = 0.0

    async def commit(self, driver: Any, statement: str, *, begin: bool) -> None:
        """Commit a batch. Its read comes after the commit before it, so both are of one way: note every second one."""
        pair, place = divmod(self._number, 2)
        self._number += 1
        way, commit = (
            ("one message", one_message) if (pair + pair // 2) % 2 == 0 else ("two statements", two_statements)
        )
        await commit(driver, statement, begin=begin)
        now = time.perf_counter()
        if place == 1:
            self.seconds[way].append(now - self._at)
        self._at = now


async def measure(database: Database, runner: JobRunner, size: int, write: bool) -> dict[str, list[float]]:
    """Walk the table in batches of a size. Returns the seconds of the batches of each way."""
    ways = Alternating()

    async def commit(self: Any, statement: str, *, begin: bool) -> None:
        await ways.commit(self, statement, begin=begin)

    Driver.commit_after = commit  # type: ignore[method-assign]
    try:
        ctx = runner.context("checkpoint")
        async for batch in ctx.chunks(select(_TABLE.c.id), size=size):
            if write:
                await batch.bulk.update(_TABLE, [{"id": key, "score": key} for key in batch])
        await ctx._attempt.close()
    finally:
        Driver.commit_after = one_message  # type: ignore[method-assign,assignment]
    async with database.engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(
            text("VACUUM bench_checkpoint")
        )
    return ways.seconds


async def main() -> None:
    """Measure both sizes, for a loop that only reads and for one that updates each row."""
    with services() as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        database = Database(settings, "bench")
        await migrate(database)
        async with database.engine.begin() as connection:
            await connection.run_sync(_TABLE.metadata.create_all)
            await connection.execute(text(f"INSERT INTO bench_checkpoint SELECT generate_series(1, {ROWS}), 0"))
        runner = JobRunner(database, settings)
        for size in SIZES:
            for write in (False, True):
                found: dict[str, list[float]] = {"one message": [], "two statements": []}
                for _ in range(ROUNDS):
                    for way, seconds in (await measure(database, runner, size, write)).items():
                        found[way] += seconds
                one, two = (statistics.median(found[way]) for way in ("one message", "two statements"))
                gain = two / one - 1
                print(
                    f"{size:>6} rows, {'update' if write else 'read only':9}: one message {one * 1e3:8.2f} ms, "
                    f"two statements {two * 1e3:8.2f} ms, gain {gain:+.1%} "
                    f"({len(found['one message'])} batches each; {'keep' if gain >= RULE else 'below the rule'})"
                )
        await database.close()


if __name__ == "__main__":
    asyncio.run(main())
