"""Cancellation at any moment leaks neither a connection nor a transaction."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import SAWarning

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext, job
from worker.db.engine import Database

AT_ONCE = 10


@job
async def busy(ctx: JobContext) -> None:
    """Call the database at nearly every moment."""
    while True:
        async with ctx.transaction() as session:
            await session.execute(text("SELECT pg_sleep(0.001)"))
            async with ctx.savepoint(session):
                await session.execute(select(Author).limit(5))
            await asyncio.sleep(0.01)  # some other await, while the transaction is open
        async with ctx.session() as session:
            await session.execute(text("SELECT 1"))
            await session.commit()


@job
async def busy_walk(ctx: JobContext) -> None:
    """Call the database at nearly every moment, inside durable loops."""
    async for batch in ctx.chunks(select(Author).where(Author.seen >= 0), size=7, lock=False):
        for author in batch:
            author.seen = 0
    async for partition in ctx.stream(select(Author.id).order_by(Author.id), size=7):
        await partition.session.execute(text("SELECT pg_sleep(0.001)"))
    await busy.function(ctx)


@pytest.mark.parametrize("jobs", [300, pytest.param(3000, marks=pytest.mark.long)])
async def test_cancelled_jobs_leak_nothing(
    context: MakeContext, database: Database, caplog: pytest.LogCaptureFixture, jobs: int
) -> None:
    await fill_authors(database, 60)
    chance = random.Random(7)

    async def cancel_one(number: int) -> None:
        ctx = context()
        task = asyncio.create_task(ctx._attempt.run(busy_walk if number % 4 == 0 else busy, ctx, {}))
        await asyncio.sleep(chance.uniform(0, 0.12))  # the random moment
        task.cancel()
        if number % 2:  # and once more, in the middle of the rollback that the first one began
            await asyncio.sleep(chance.uniform(0, 0.002))
            task.cancel()
        # asyncio.wait_for of CPython 3.11 can lose a cancellation: say it again, as the worker does.
        while not (await asyncio.wait({task}, timeout=1))[0]:
            task.cancel()
        assert task.cancelled()
        await ctx._attempt.close()

    numbers = iter(range(jobs))

    async def cancel_many() -> None:
        for number in numbers:
            await cancel_one(number)

    # A connection that only the garbage collector gives back was leaked, too: SQLAlchemy warns of it, and logs it.
    with warnings.catch_warnings():
        warnings.simplefilter("error", SAWarning)
        await asyncio.gather(*(cancel_many() for _ in range(AT_ONCE)))
        gc.collect()
    assert "garbage collector" not in caplog.text
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with database.session() as session:
        idle = await session.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
        )
    assert idle == 0


async def test_no_two_jobs_share_a_session_or_a_connection(context: MakeContext, database: Database) -> None:
    together = asyncio.Barrier(5)
    backends = []

    async def look() -> None:
        async with context().transaction() as session:
            backends.append((id(session), await session.scalar(text("SELECT pg_backend_pid()"))))
            await together.wait()

    await asyncio.gather(*(look() for _ in range(5)))
    assert len({session for session, _ in backends}) == 5
    assert len({pid for _, pid in backends}) == 5
