"""Calls of a batch that are never awaited, made too late, or whose error is swallowed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.batch.fault_scene import (
    LIMIT_SECONDS,
    ROWS,
    SIZE,
    forty_rows,  # noqa: F401  (the fixture `run`)
)
from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext, job
from worker.db.engine import Database
from worker.errors import LonghaulError, SourceUnavailable, UnsupportedStatement, UsageError
from worker.testing.runner import JobRunner


@job
async def forget_to_await_bulk(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        batch.bulk.update(Author, [{"id": key, "seen": 1} for key in batch])
    return ctx.rows_done


@job
async def forget_to_await_sweep(ctx: JobContext) -> int:
    ctx.sweep(update(Author).values(seen=1))
    return 1


@job
async def forget_to_await_session(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        batch.session.execute(update(Author).values(seen=1))
    return ctx.rows_done


@job
async def forget_to_await_in_a_transaction(ctx: JobContext) -> int:
    async with ctx.transaction() as session:
        session.execute(update(Author).values(seen=1))
    return 1


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (forget_to_await_bulk, r"batch\.bulk\.update"),
        (forget_to_await_sweep, r"ctx\.sweep"),
        (forget_to_await_session, r"session\.execute"),
        (forget_to_await_in_a_transaction, r"session\.execute"),
    ],
)
async def test_forgotten_await_is_an_error(run: JobRunner, database: Database, one: Any, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}\(\) was called without `await`"):
        await run(one)
    assert await count_seen(database) == {0: ROWS}


async def test_tracked_call_can_be_a_task(context: MakeContext, database: Database) -> None:
    await fill_authors(database, ROWS)
    ctx = context()
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        rows = [{"id": key, "seen": 1} for key in batch]
        await asyncio.create_task(batch.bulk.update(Author, rows[:5]))
        await asyncio.wait_for(batch.bulk.update(Author, rows[5:]), LIMIT_SECONDS)
    await ctx._attempt.succeed()
    assert await count_seen(database) == {1: ROWS}


@pytest.mark.parametrize("way", ["bulk", "session", "driver"])
@pytest.mark.parametrize("ended", ["end", "break", "another loop"])
async def test_write_through_a_batch_after_its_loop_is_an_error(
    context: MakeContext, database: Database, way: str, ended: str
) -> None:
    await fill_authors(database, ROWS)
    ctx = context()
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        if ended == "break" and len(batch) == SIZE:
            break
    if ended != "end":
        async for _ in ctx.chunks(select(Author.id), size=SIZE, name="another"):
            pass
    with pytest.raises(UsageError, match="is over"):
        if way == "bulk":
            await batch.bulk.update(Author, [{"id": 1, "seen": 7}])
        elif way == "session":
            await batch.session.execute(update(Author).values(seen=7))
        else:
            await batch._transaction.driver()
    assert await count_seen(database) == {0: ROWS}


async def test_error_at_a_loops_begin_that_the_job_swallows_fails_the_run(context: MakeContext) -> None:
    for loop in (
        lambda ctx: ctx.chunks(select(Author), by=Author.name),
        lambda ctx: ctx.stream(select(Author.id).order_by(Author.name)),
        lambda ctx: ctx.lines("/nowhere"),
    ):
        ctx = context()
        try:
            async for _ in loop(ctx):
                pass
        except (SourceUnavailable, UnsupportedStatement):
            pass
        with pytest.raises(LonghaulError, match="at its beginning, but the job continued"):
            await ctx._attempt.succeed()
    ctx = context()
    with pytest.raises(UnsupportedStatement):
        await ctx.sweep(update(Author).values(seen=1), by=Author.name)
    with pytest.raises(LonghaulError, match="at its beginning"):
        await ctx._attempt.succeed()
