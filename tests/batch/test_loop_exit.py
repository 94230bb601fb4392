"""Exits from a loop: `break` and `return` commit; an exception that the job catches does not, and fails the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select, text, update

from tests.models import Author, authors
from tests.support.authors import count_seen
from tests.support.contexts import MakeContext
from worker import JobContext, LonghaulError
from worker.batch import Batch
from worker.db.engine import Database

Body = Callable[[JobContext], Awaitable[Any]]


async def mark(batch: Batch[Author]) -> None:
    """Count each row of a batch."""
    for author in batch:
        author.seen += 1


@pytest.fixture
async def rows(context: MakeContext) -> None:
    """Fifty rows."""
    await context().bulk.insert(Author, authors(50))


async def by_break(ctx: JobContext) -> None:
    async for batch in ctx.chunks(select(Author), size=10):
        await mark(batch)
        if batch.number == 2:
            break


async def by_return(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Author), size=10):
        await mark(batch)
        if batch.number == 2:
            return await asyncio.sleep(0, len(batch))
    return 0


async def by_break_in_a_block(ctx: JobContext) -> None:
    async for batch in ctx.chunks(select(Author), size=10):
        async with asyncio.timeout(5):
            try:
                await mark(batch)
                if batch.number == 2:
                    break
            finally:
                await asyncio.sleep(0)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("body", [by_break, by_return, by_break_in_a_block])
async def test_a_loop_that_is_left_on_purpose_commits_its_batch(
    context: MakeContext, database: Database, body: Body
) -> None:
    ctx = context("run")
    await body(ctx)
    await ctx._attempt.succeed()
    assert await count_seen(database) == {0: 30, 1: 20}
    run = await ctx._attempt.durable_run()
    assert run.steps["1-chunks"].done


async def by_an_error(ctx: JobContext) -> None:
    try:
        async for batch in ctx.chunks(select(Author), size=10):
            await mark(batch)
            if batch.number == 3:
                raise ValueError("of the body")
    except ValueError:
        pass


async def by_an_error_of_a_call(ctx: JobContext) -> None:
    try:
        async for batch in ctx.chunks(select(Author), size=10):
            await mark(batch)
            if batch.number == 3:
                await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    except TimeoutError:
        pass


async def by_a_timeout_around_it(ctx: JobContext) -> None:
    try:
        async with asyncio.timeout(None) as limit:
            async for batch in ctx.chunks(select(Author), size=10):
                await mark(batch)
                if batch.number == 3:
                    limit.reschedule(asyncio.get_running_loop().time())
                    await asyncio.Event().wait()
    except TimeoutError:
        pass


async def by_an_error_of_the_commit(ctx: JobContext) -> None:
    try:
        async for batch in ctx.chunks(select(Author), size=10):
            await mark(batch)
            if batch.number == 3:
                batch[0].name = "x" * 100  # too long for its column: found by the flush
    except Exception:
        pass


async def in_a_generator(ctx: JobContext) -> None:
    async def around() -> AsyncIterator[Batch[Author]]:
        async for batch in ctx.chunks(select(Author), size=10):
            yield batch

    walk = around()
    async for batch in walk:
        await mark(batch)
        if batch.number == 3:
            break
    await walk.aclose()  # type: ignore[attr-defined]


CAUGHT = [
    by_an_error,
    by_an_error_of_a_call,
    by_a_timeout_around_it,
    by_an_error_of_the_commit,
    in_a_generator,
]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("body", CAUGHT)
async def test_an_exception_that_the_job_catches_rolls_its_batch_back_and_is_told_at_the_end(
    context: MakeContext, database: Database, body: Body
) -> None:
    ctx = context("run")
    await body(ctx)
    with pytest.raises(LonghaulError, match=r"an exception ended the loop chunks at step '1-chunks', batch 3, keys"):
        await ctx._attempt.succeed()
    await ctx._attempt.close()
    assert await count_seen(database) == {0: 30, 1: 20}
    again = context("run")
    async for batch in again.chunks(select(Author), size=10):
        await mark(batch)
    await again._attempt.succeed()
    assert await count_seen(database) == {1: 50}


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("body", CAUGHT)
async def test_no_other_loop_begins_after_it(context: MakeContext, database: Database, body: Body) -> None:
    ctx = context("run")
    await body(ctx)
    with pytest.raises(LonghaulError, match="but the job continued"):
        await ctx.sweep(update(Author).values(seen=9))
    await ctx._attempt.fail()
    assert await count_seen(database) == {0: 30, 1: 20}


@pytest.mark.usefixtures("rows")
async def test_two_loops_at_once_are_refused_and_neither_is_marked_as_done(
    context: MakeContext, database: Database
) -> None:
    ctx = context("run")
    both = [
        asyncio.create_task(ctx.sweep(statement.values(seen=Author.seen + 1), size=10, name=name))
        for statement, name in ((update(Author), "a"), (update(Author).where(Author.id > 0), "b"))
    ]
    with pytest.raises(LonghaulError, match="cannot be nested or run concurrently"):
        await asyncio.gather(*both)
    await asyncio.wait(both)
    await ctx._attempt.fail()
    await ctx._attempt.close()
    again = context("run")
    assert await again.sweep(update(Author).values(seen=Author.seen + 1), size=10, name="a") == 50
    await again._attempt.succeed()
    assert await count_seen(database) == {1: 50}


@pytest.mark.usefixtures("rows")
async def test_two_loops_over_one_statement_need_names(context: MakeContext, database: Database) -> None:
    ctx = context()
    with pytest.raises(LonghaulError, match="give each a name"):
        for region in (1, 2):
            await ctx.sweep(update(Author).where(Author.region == region).values(seen=1))
    ctx = context()
    for region in (1, 2):
        await ctx.sweep(update(Author).where(Author.region == region).values(seen=1), name=f"region {region}")
    await ctx._attempt.succeed()


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("verb", ["commit", "rollback", "close", "reset"])
async def test_the_session_of_a_batch_cannot_be_ended_from_beneath(context: MakeContext, verb: str) -> None:
    ctx = context()
    with pytest.raises(LonghaulError, match=verb):
        async for batch in ctx.chunks(select(Author), size=10):
            await batch.session.run_sync(lambda session: getattr(session, verb)())
    await ctx._attempt.fail()


@pytest.mark.usefixtures("rows")
async def test_the_session_of_a_batch_is_over_with_it(context: MakeContext, database: Database) -> None:
    ctx = context()
    kept = [batch.session async for batch in ctx.chunks(select(Author), size=10)]
    with pytest.raises(Exception, match="permanently closed"):
        await kept[0].execute(text("UPDATE author SET seen = 7"))
    await ctx._attempt.succeed()
    assert await count_seen(database) == {0: 50}
