"""Walks that cannot be shared are refused with an error that says what to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, delete, select, text

from tests.faults.conftest import effects, fill_targets
from tests.hands.test_controls import both_walk
from tests.models import Target
from tests.support.contexts import MakeContext
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.errors import UnsupportedStatement, UsageError


async def _touch(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Target), size=10, parallel=2):
        for target in batch:
            target.touched = True
        await ctx.redis.sadd(f"walking:{ctx.run_id}", str(ctx.is_helper))
        await asyncio.sleep(0.01)
    return ctx.rows_done


@job
async def touch_alone(ctx: JobContext, part: int = 0) -> int:
    """Touch each row by two hands."""
    return await _touch(ctx)


@job(overlap=True)
async def touch_over(ctx: JobContext) -> int:
    """Touch each row by two hands, whatever other runs do."""
    return await _touch(ctx)


async def test_a_second_run_over_the_same_table_is_refused_while_the_first_has_not_ended(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_targets(database, 1_500)
    async with working(fast, touch_alone):
        first = await client.enqueue(touch_alone)
        await both_walk(client, first.id)
        second, other = await client.enqueue(touch_alone), await client.enqueue(touch_alone, part=1)
        with pytest.raises(JobFailed, match=rf"run {first.id} of touch_alone .* has not ended.*overlap=True"):
            await second.result(timeout=120)
        assert await first.result(timeout=120) == 1_500
        assert await other.result(timeout=120) == 1_500
        again = await client.enqueue(touch_alone)
        assert await again.result(timeout=120) == 1_500


async def test_runs_of_a_job_with_overlap_walk_at_once(fast: Settings, client: Client, database: Database) -> None:
    await fill_targets(database, 500)
    async with working(fast, touch_over):
        runs = [await client.enqueue(touch_over) for _ in range(2)]
        assert [await run.result(timeout=120) for run in runs] == [500, 500]
    assert await effects(database) == {1: 500}


async def test_table_inheritance_is_refused(context: MakeContext, database: Database) -> None:
    metadata = MetaData()
    table = Table("elder", metadata, Column("id", Integer, primary_key=True))
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(text("CREATE TABLE heir () INHERITS (elder)"))
        await connection.execute(text("INSERT INTO elder SELECT generate_series(1, 100)"))
        await connection.execute(text("INSERT INTO heir SELECT generate_series(1, 100)"))
    with pytest.raises(UnsupportedStatement, match="elder, from which other tables inherit"):
        await context().sweep(delete(table), size=10, parallel=2)


@pytest.mark.parametrize("hands", [0, -1, 101, True, 1.5, "2"])
async def test_a_number_of_hands_that_cannot_be_is_an_error(context: MakeContext, hands: Any) -> None:
    for loop in (lambda: context().chunks(select(Target), parallel=hands),):
        with pytest.raises(UsageError, match=r"chunks: parallel=.*: give the number of hands, from 1 to 100"):
            loop()


async def test_options_that_do_not_fit_are_errors(context: MakeContext) -> None:
    with pytest.raises(UnsupportedStatement, match="skip_locked=True cannot be combined with parallel="):
        context().chunks(select(Target), parallel=2, skip_locked=True)
    with pytest.raises(UsageError, match='on_hand_error=\'ignore\': give "stop" or "continue"'):
        context().chunks(select(Target), parallel=2, on_hand_error="ignore")  # type: ignore[arg-type]
    keyless = Table("keyless", MetaData(), Column("n", Integer))
    with pytest.raises(UnsupportedStatement, match="no primary key to walk by"):
        context().chunks(select(keyless), parallel=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'parallel'"):
        context().lines("/tmp/none", parallel=2)  # type: ignore[call-arg]
