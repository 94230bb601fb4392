"""Limits of a walk hold over all of its hands."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, text

from tests.faults.conftest import effects, fill_targets, ledger_row
from tests.models import Target
from tests.support.contexts import MakeContext
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.queue import keys


@job
async def touch_at_a_pace(ctx: JobContext) -> int:
    """Touch each row by three hands."""
    async for batch in ctx.chunks(select(Target), size=20, parallel=3):
        for target in batch:
            target.touched = True
    return ctx.rows_done


@job(max_attempts=1)
async def fail_at_some_rows(ctx: JobContext, limit: int) -> int:
    """Fail at each hundredth row, in three hands that begin together."""
    options = {"on_error": "quarantine", "quarantine_limit": limit}
    async for batch in ctx.chunks(select(Target), size=10, parallel=3, **options):
        await ctx.redis.sadd("walking", str(id(ctx)))
        while await ctx.redis.scard("walking") < 3:
            await asyncio.sleep(0.01)
        for target in batch:
            if target.id % 100 == 0:
                raise ValueError(f"row {target.id}")
            target.touched = True
    return ctx.rows_done


async def test_a_pace_holds_for_all_hands_together(fast: Settings, client: Client, database: Database) -> None:
    await fill_targets(database, 2_400)
    await client.redis.hset(keys.PACE, touch_at_a_pace.name, 1_000)
    async with working(fast, touch_at_a_pace):
        run = await client.enqueue(touch_at_a_pace)
        assert await run.result(timeout=120) == 2_400
    async with database.session() as session:
        found = await session.execute(
            text(
                "SELECT extract(epoch FROM max(updated_at) - min(started_at)) AS seconds, "
                "count(DISTINCT owner) AS hands FROM worker.step_range"
            )
        )
        row = found.one()
    assert row.hands > 1
    assert row.seconds >= 2.0  # 2.4 s at the pace; the first half second may be faster


@pytest.mark.parametrize("limit", [pytest.param(30, marks=pytest.mark.long), 10])
async def test_the_limit_of_the_quarantine_holds_for_all_hands_together(
    fast: Settings, client: Client, database: Database, limit: int
) -> None:
    await fill_targets(database, 3_000)
    async with working(fast, fail_at_some_rows):
        run = await client.enqueue(fail_at_some_rows, limit=limit)
        if limit == 30:
            assert await run.result(timeout=120) == 2_970
            assert await effects(database) == {0: 30, 1: 2_970}
        else:
            with pytest.raises(JobFailed, match=r"row \d+"):
                await run.result(timeout=120)
            assert (await ledger_row(database, run.id)).state == "dead"
    async with database.session() as session:
        rows = await session.execute(text("SELECT run_id, count(*) FROM worker.quarantine GROUP BY run_id"))
        assert [tuple(row) for row in rows] == [(run.id, limit)]


@job(max_attempts=1)
async def touch_by_the_run_alone(ctx: JobContext) -> int:
    """Touch each row, while the helpers fail."""
    async for batch in ctx.chunks(select(Target), size=20, parallel=3, on_hand_error="continue", name="shared"):
        if ctx.is_helper:
            await ctx.redis.incr("failed")
            raise NonRetryableError("this helper fails")
        while int(await ctx.redis.get("failed") or 0) < 2:
            await asyncio.sleep(0.01)
        for target in batch:
            target.touched = True
        await ctx.redis.rpush("hands", ctx._attempt._boundary.hands)
    return ctx.rows_done


async def test_a_helper_that_has_failed_takes_no_part_of_the_pace(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_targets(database, 2_000)
    async with working(fast, touch_by_the_run_alone):
        run = await client.enqueue(touch_by_the_run_alone)
        with pytest.raises(JobFailed, match="this helper fails"):
            await run.result(timeout=120)
    assert int((await client.redis.lindex("hands", -1)) or 0) == 1


async def test_a_walk_behind_a_shared_one_has_the_whole_pace(context: MakeContext, database: Database) -> None:
    await fill_targets(database, 400)
    ctx = context()
    async for _ in ctx.chunks(select(Target), size=10, parallel=4):
        async with database.transaction() as session:  # another hand has just ended these
            await session.execute(text("UPDATE worker.step_range SET owner = 'another' WHERE done"))
    async for _ in ctx.chunks(select(Target), size=10, name="alone"):
        assert ctx._attempt._boundary.hands == 1
