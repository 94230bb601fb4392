"""A ledger that was changed by hand: a constraint rejects it, or the run ends in one error. No row is done twice."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext
from worker.db.engine import Database
from worker.errors import LedgerDamaged

#: As a worker writes, which sets `updated_at`: a trigger refuses the same without it.
BY_WORKER = ", updated_at = pg_catalog.clock_timestamp()"
REFUSED = [
    "UPDATE worker.run SET finished_at = now()",
    "UPDATE worker.run SET state = 'succeeded'",
    "UPDATE worker.run SET state = 'dancing'",
    "UPDATE worker.run SET attempt = -5",
    "UPDATE worker.run SET takeovers = -1",
    "UPDATE worker.run SET fence = 0",
    "UPDATE worker.step SET rows = -5",
    "UPDATE worker.step SET batches = -1",
    "UPDATE worker.step SET total = -1",
    "UPDATE worker.step SET position = 0",
    "UPDATE worker.step SET cursor = '[]'",
    "UPDATE worker.step SET cursor = '{}'",
    "UPDATE worker.step SET cursor = '5'",
    "UPDATE worker.step SET cursor = 'null'",
    "UPDATE worker.step SET cursor = '[1, 2]'",
    "UPDATE worker.step SET upper_bound = '[]'",
    "UPDATE worker.step SET upper_bound = '{\"a\": 1}'",
    "UPDATE worker.step SET key = '{}'",
    "UPDATE worker.step SET key = '5'",
]
#: Values that a worker could have written.
MOVED = [
    "UPDATE worker.step SET done = true",
    "UPDATE worker.step SET cursor = NULL",
    "UPDATE worker.step SET cursor = '[40]'",
    "UPDATE worker.step SET cursor = '[5]', rows = 5",
    "UPDATE worker.step SET upper_bound = '[25]'",
    "UPDATE worker.step SET rows = 50, batches = 9",
    "UPDATE worker.step SET kind = 'sweep'",
    "UPDATE worker.run SET state = 'succeeded', finished_at = now()",
]
NOTICED = [
    ("DELETE FROM worker.step", "has lost 1 of the 1 steps of run run"),
    (f"UPDATE worker.step SET upper_bound = NULL{BY_WORKER}", "has lost its upper bound"),
]
MOVED_RANGES = [
    "UPDATE worker.step_range SET done = true WHERE number > 1",
    "UPDATE worker.step_range SET cursor = upper WHERE number = 2",
    "UPDATE worker.step_range SET lower = upper WHERE number = 2",
    "UPDATE worker.step_range SET upper = lower WHERE number = 2",
    "DELETE FROM worker.step_range WHERE number = 2",
    "DELETE FROM worker.step_range",
]


async def mark(ctx: JobContext, batches: int) -> None:
    """Count each author once; stop after a number of batches."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        if batch.number > batches:
            raise RuntimeError


async def begun(context: MakeContext, database: Database) -> None:
    """Begin a walk, commit two batches, and die."""
    await fill_authors(database, 50)
    ctx = context("run")
    with pytest.raises(RuntimeError):
        await mark(ctx, 2)
    await ctx._attempt.fail()
    await ctx._attempt.close()


async def test_constraints_refuse_what_no_worker_writes(context: MakeContext, database: Database) -> None:
    await begun(context, database)
    for statement in REFUSED:
        with pytest.raises(IntegrityError, match="violates check constraint"):
            async with database.transaction() as session:
                await session.execute(text(f"{statement}{BY_WORKER}"))
    with pytest.raises(IntegrityError, match="has not ended cannot be deleted"):
        async with database.transaction() as session:
            await session.execute(text("DELETE FROM worker.run"))
    await mark(context("run"), 99)
    assert await count_seen(database) == {1: 50}


@pytest.mark.parametrize(("statement", "message"), NOTICED)
async def test_a_run_whose_steps_were_damaged_ends_in_one_error(
    context: MakeContext, database: Database, statement: str, message: str
) -> None:
    await begun(context, database)
    async with database.transaction() as session:
        await session.execute(text(statement))
    with pytest.raises(LedgerDamaged, match=message):
        await mark(context("run"), 99)
    assert await count_seen(database) == {0: 30, 1: 20}


async def test_no_other_hand_moves_a_walk(context: MakeContext, database: Database) -> None:
    await begun(context, database)
    for statement in MOVED:
        with pytest.raises(IntegrityError, match="workers alone write how far a run has come"):
            async with database.transaction() as session:
                await session.execute(text(statement))
    await mark(context("run"), 99)
    assert await count_seen(database) == {1: 50}


async def test_no_other_hand_moves_or_deletes_a_range(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 50)
    ctx = context("run")
    with pytest.raises(RuntimeError):
        async for _ in ctx.chunks(select(Author), size=5, parallel=2):
            raise RuntimeError
    await ctx._attempt.fail()
    await ctx._attempt.close()
    for statement in MOVED_RANGES:
        with pytest.raises(IntegrityError, match="workers alone write how far a run has come"):
            async with database.transaction() as session:
                await session.execute(text(statement))
    async with database.transaction() as session:  # with their step they go
        await session.execute(text("DELETE FROM worker.step"))
        assert await session.scalar(text("SELECT count(*) FROM worker.step_range")) == 0
