"""`skip_locked=True`: locked rows are skipped, and processed once at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update

from tests.models import Author, authors
from tests.support.contexts import MakeContext
from tests.support.waiting import until
from worker import JobContext
from worker.db.engine import Database
from worker.errors import UnsupportedStatement

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
async def rows(context: MakeContext) -> None:
    """Fifty rows to walk."""
    await context().bulk.insert(Author, authors(50))


async def count(ctx: JobContext, **options: Any) -> list[list[int]]:
    batches = []
    async for batch in ctx.chunks(select(Author), size=10, skip_locked=True, **options):
        for author in batch:
            author.seen += 1
        batches.append([author.id for author in batch])
    await ctx._attempt.succeed()
    return batches


async def seen_once(database: Database) -> bool:
    async with database.session() as session:
        return {1} == set(await session.scalars(select(Author.seen)))


async def remembered(database: Database) -> list[Any]:
    async with database.session() as session:
        return list(await session.scalars(text("SELECT key FROM worker.skipped ORDER BY id")))


async def test_nothing_that_is_locked_is_a_plain_walk(context: MakeContext, database: Database) -> None:
    batches = await count(context())
    assert [len(batch) for batch in batches] == [10] * 5
    assert await seen_once(database)


async def test_locked_rows_are_done_at_the_end(context: MakeContext, database: Database) -> None:
    ctx = context()
    batches = []
    async with database.session() as other:
        await other.execute(select(Author).where(Author.id.in_([3, 4, 25])).with_for_update())
        async for batch in ctx.chunks(select(Author), size=10, skip_locked=True):
            for author in batch:
                author.seen += 1
            batches.append([author.id for author in batch])
            if batch.number == 5:
                assert await remembered(database) == [[3], [4], [25]]
                await other.rollback()
    await ctx._attempt.succeed()
    assert batches[0] == [1, 2, 5, 6, 7, 8, 9, 10]
    assert batches[5:] == [[3, 4, 25]]
    assert await seen_once(database)
    assert await remembered(database) == []


async def test_what_is_locked_at_the_end_is_waited_for(context: MakeContext, database: Database) -> None:
    async with database.session() as other:
        await other.execute(select(Author).where(Author.id.between(11, 30)).with_for_update())  # two whole batches
        walk = asyncio.create_task(count(context()))

        async def waits() -> bool:
            async with database.session() as session:
                query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                return bool(await session.scalar(text(query)))

        await until(waits)
        await other.rollback()
        batches = await walk
    assert batches[-2:] == [list(range(11, 21)), list(range(21, 31))]
    assert await seen_once(database)


async def test_skipped_rows_outlast_their_worker(context: MakeContext, database: Database) -> None:
    first = context("run")
    async with database.session() as other:
        await other.execute(select(Author).where(Author.id.in_([2, 12, 50])).with_for_update())
        loop = aiter(first.chunks(select(Author), size=10, skip_locked=True))
        for _ in range(3):
            for author in await anext(loop):
                author.seen += 1
        await first._attempt.close()  # two batches are committed
        again = context("run")
        walk = asyncio.create_task(count(again))
        await until(lambda: _all(database, [[2], [12], [50]]))
        await other.execute(delete(Author).where(Author.id == 12))
        await other.commit()
        batches = await walk
    assert batches[0] == list(range(21, 31))
    # In one batch, or in two if the walk looked at one row before the locks were released, and at the other afterwards.
    assert sorted(id_ for batch in batches for id_ in batch if id_ in (2, 12, 50)) == [2, 50]
    assert {*batches[-1]} <= {2, 50}
    assert await seen_once(database)
    assert await remembered(database) == []


async def _all(database: Database, keys: list[list[int]]) -> bool:
    return await remembered(database) == keys


async def test_a_skipped_row_that_matches_no_longer_is_left_out(context: MakeContext, database: Database) -> None:
    async with database.session() as other:
        await other.execute(update(Author).where(Author.id == 7).values(region=-1))
        walk = asyncio.create_task(_ids(context(), select(Author).where(Author.region >= 0)))
        await until(lambda: _all(database, [[7]]))
        await other.commit()
        assert sorted(await walk) == [id_ for id_ in range(1, 51) if id_ != 7]


async def _ids(ctx: JobContext, statement: Any) -> list[int]:
    found: list[int] = []
    async for batch in ctx.chunks(statement, size=10, skip_locked=True):
        found += [author.id for author in batch]
    await ctx._attempt.succeed()
    return found


async def test_composite_and_descending_keys_are_remembered(context: MakeContext, database: Database) -> None:
    ctx = context()
    found: list[int] = []
    async with database.session() as other:
        await other.execute(select(Author).where(Author.id.in_([6, 7, 20])).with_for_update())
        by = [Author.region.desc(), Author.id]
        async for batch in ctx.chunks(select(Author.id), by=by, size=5, skip_locked=True, allow_sort=True):
            found += batch
            if len(found) == 47:
                assert await remembered(database) == [[6, 6], [6, 20], [0, 7]]
                await other.rollback()
    await ctx._attempt.succeed()
    assert found[47:] == [6, 20, 7]
    assert len(set(found)) == 50


async def test_a_walk_without_locks_has_none_to_skip(context: MakeContext) -> None:
    with pytest.raises(UnsupportedStatement, match="it has lock=False"):
        context().chunks(select(Author), lock=False, skip_locked=True)
