"""Streams with several hands read one snapshot."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select, text

from tests.faults.conftest import effects, fill_targets
from tests.models import Author, Target, authors
from tests.support.contexts import MakeContext
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import UnsupportedStatement


@job
async def read_by_hands(ctx: JobContext) -> dict[str, int]:
    """Count the rows by their value, in each hand; wait for the test after the first partition of each."""
    reads = select(Target.id, Target.touched).order_by(Target.id)
    async for partition in ctx.stream(reads, size=10, parallel=2):
        await ctx.redis.sadd("walking", str(ctx.is_helper))
        while not await ctx.redis.exists("go on"):
            await asyncio.sleep(0.01)
        for _, touched in partition:
            await ctx.redis.hincrby("seen", f"{ctx.is_helper} {touched}", 1)
    return {"rows": ctx.rows_done}


async def test_all_hands_read_the_rows_of_one_snapshot(fast: Settings, client: Client, database: Database) -> None:
    await fill_targets(database, 640)
    async with working(fast, read_by_hands):
        run = await client.enqueue(read_by_hands)

        async def both() -> bool:
            return await client.redis.scard("walking") == 2

        await until(both)
        async with database.transaction() as session:
            await session.execute(text("UPDATE target SET touched = true"))
            await session.execute(text("DELETE FROM target WHERE id > 600"))
        await client.redis.set("go on", 1)
        assert await run.result(timeout=120) == {"rows": 640}
    seen = {name.decode(): int(count) for name, count in (await client.redis.hgetall("seen")).items()}
    assert seen.keys() == {"True False", "False False"}
    assert sum(seen.values()) == 640


async def test_groups_are_divided_by_their_key(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(Author.__table__.insert(), authors(700))
    counts = select(Author.code, func.count()).group_by(Author.code).order_by(Author.code)
    found = [row async for part in context().stream(counts, size=20, parallel=3) for row in part]
    assert [tuple(row) for row in found] == sorted((f"c{n}", 1) for n in range(1, 701))
    async with database.session() as session:
        rows = await session.execute(text("SELECT rows FROM worker.step_range"))
        assert {row.rows for row in rows} == {20}


async def test_a_stream_without_an_order_is_refused(context: MakeContext, database: Database) -> None:
    await fill_targets(database, 10)
    for options in ({}, {"on_restart": "start_over"}):
        with pytest.raises(UnsupportedStatement, match=r"[Oo]rder it by a\s+unique, not-null key"):
            async for _ in context().stream(select(Target.id), parallel=2, **options):  # type: ignore[arg-type]
                pass
    assert await effects(database) == {0: 10}
