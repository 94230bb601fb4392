"""Operators and failures: commands and errors concern the walk as a whole, over all its hands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, text

from tests.faults.conftest import effects, fill_targets, ledger_row
from tests.models import Target
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.queue import keys


@job
async def touch_slowly(ctx: JobContext, hands: int = 2) -> int:
    """Touch each row by several hands; count the calls behind the loop."""
    async for batch in ctx.chunks(select(Target), size=10, parallel=hands):
        for target in batch:
            target.touched = True
        await ctx.redis.sadd(f"walking:{ctx.run_id}", str(ctx.is_helper))
        await asyncio.sleep(0.01)
    await ctx.redis.incr(f"after:{ctx.run_id}")
    return ctx.rows_done


@job(max_attempts=1)
async def fail_in_a_helper(ctx: JobContext, on_hand_error: Any) -> int:
    """Fail at the first batch of a helper, unless it is told not to."""
    async for batch in ctx.chunks(select(Target), size=10, parallel=2, on_hand_error=on_hand_error):
        for target in batch:
            target.touched = True
        if ctx.is_helper and not await ctx.redis.exists("mended"):
            await ctx.redis.set("failed", 1)
            raise ValueError("the helper cannot do this")
        while not await ctx.redis.exists("failed"):
            await asyncio.sleep(0.01)
        while on_hand_error == "stop" and not await has_ended_or_is_mended(ctx):
            await asyncio.sleep(0.01)
    return ctx.rows_done


async def has_ended_or_is_mended(ctx: JobContext) -> bool:
    """Return whether the helper is dead: before that, a slow machine could walk all other ranges."""
    if await ctx.redis.exists("mended"):
        return True
    async with ctx.database.session() as session:
        return bool(await session.scalar(text("SELECT EXISTS (SELECT FROM worker.run WHERE state = 'dead')")))


async def both_walk(client: Client, run_id: str) -> None:
    """Wait until the run and a helper have begun to walk."""

    async def look() -> bool:
        return len(await client.redis.smembers(f"walking:{run_id}")) == 2

    await until(look)


async def states(database: Database) -> dict[str, str]:
    """Return the state of each run in the ledger."""
    async with database.session() as session:
        rows = await session.execute(text("SELECT id, state FROM worker.run"))
        return {row.id: row.state for row in rows}


async def test_a_pause_ends_the_helpers_and_the_run_goes_on_with_others(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_targets(database, 3_000)
    async with working(fast, touch_slowly):
        run = await client.enqueue(touch_slowly)
        await both_walk(client, run.id)
        await client.redis.sadd(keys.PAUSED, run.id)

        async def rests() -> bool:
            found = await states(database)
            return len(found) == 2 and set(found.values()) == {"paused", "succeeded"}

        await until(rests)
        done = sum(times * count for times, count in (await effects(database)).items())
        assert 0 < done < 3_000
        async with database.session() as session:
            owned = "SELECT count(*) FROM worker.step_range WHERE owner IS NOT NULL AND NOT done"
            assert await session.scalar(text(owned)) == 0
        await client.redis.srem(keys.PAUSED, run.id)
        assert await run.result(timeout=120) == 3_000
    assert await effects(database) == {1: 3_000}
    assert len(await states(database)) == 3
    assert await client.redis.get(f"after:{run.id}") == b"1"


async def test_a_cancel_ends_all_hands(fast: Settings, client: Client, database: Database) -> None:
    await fill_targets(database, 5_000)
    async with working(fast, touch_slowly):
        run = await client.enqueue(touch_slowly, hands=3)
        await both_walk(client, run.id)
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)

        async def ended() -> bool:
            return set((await states(database)).values()) == {"succeeded", "cancelled"}

        await until(ended)
    assert (await ledger_row(database, run.id)).state == "cancelled"
    assert await client.redis.get(f"after:{run.id}") is None


async def test_a_drained_helper_goes_back_to_the_queue_at_no_cost(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_targets(database, 3_000)
    async with working(with_worker(fast, name="stays", max_jobs=1), touch_slowly):
        run = await client.enqueue(touch_slowly)

        async def begun() -> bool:
            return bool(await client.redis.smembers(f"walking:{run.id}"))

        await until(begun)
        async with working(with_worker(fast, name="drained"), touch_slowly):
            await both_walk(client, run.id)
        async with database.session() as session:
            row = (await session.execute(text("SELECT * FROM worker.run WHERE parent IS NOT NULL"))).one()
            owned = "SELECT count(*) FROM worker.step_range WHERE owner = :id AND NOT done"
            assert await session.scalar(text(owned), {"id": row.id}) == 0
        assert (row.state, row.attempt) == ("waiting", 1)
        assert await run.result(timeout=120) == 3_000
    assert await effects(database) == {1: 3_000}


@pytest.mark.parametrize("on_hand_error", ["stop", "continue"])
async def test_a_helper_that_fails_for_good_ends_the_run_with_its_keys_and_a_retry_goes_on(
    fast: Settings, client: Client, database: Database, on_hand_error: str
) -> None:
    await fill_targets(database, 1_000)
    async with working(fast, fail_in_a_helper):
        run = await client.enqueue(fail_in_a_helper, on_hand_error=on_hand_error)
        with pytest.raises(JobFailed, match=r"helper .*hand-2.*range \d+ \(behind .*up to \[\d+\]\).*cannot do this"):
            await run.result(timeout=120)
        found = await effects(database)
        if on_hand_error == "continue":  # all other ranges are done
            assert found[1] == 1_000 - found[0]
            assert 30 <= found[0] <= 40
        else:
            assert found[0] > 40
        assert await client.redis.hlen(keys.DEAD) == 1  # the run alone
        await client.redis.set("mended", 1)
        await client.redis.sadd(keys.RETRIED, run.id)

        async def retried() -> bool:  # in the ledger, and then in Redis, where the end of the first attempts is
            return b'"s":false' not in (await client.redis.get(keys.RESULT + run.id) or b"")

        await until(retried)
        assert await run.result(timeout=120) == 1_000
    assert await effects(database) == {1: 1_000}
