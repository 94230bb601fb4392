"""Orders to running jobs: pause, resume, cancel, drain, and signals."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.runtime.gated_jobs import (
    fresh,  # noqa: F401  (used by each test)
    gate,
    tries,
    wait_for_go,
    walk,
)
from tests.support.authors import count_seen, fill_authors
from tests.support.waiting import until_status, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, Settings
from worker.db.engine import Database
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")


async def test_pause_and_resume_act_within_one_batch(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    await fill_authors(database, 50)
    run = await client.enqueue(walk)
    async with working(fast, walk) as worker:
        await asyncio.wait_for(gate["begun"].wait(), 60)
        await redis.sadd(keys.PAUSED, "walk")
        await until_true(lambda: "walk" in worker.operator_state.paused)
        gate["go"].set()
        await until_status(run, "paused")
        assert await count_seen(database) == {0: 30, 1: 20}
        await redis.srem(keys.PAUSED, "walk")
        assert await run.result(timeout=120) == 50
    assert await count_seen(database) == {1: 50}


async def test_cancel_acts_within_one_batch(fast: Settings, client: Client, database: Database) -> None:
    await fill_authors(database, 50)
    run = await client.enqueue(walk)
    async with working(fast, walk) as worker:
        await asyncio.wait_for(gate["begun"].wait(), 60)
        await run.cancel()
        await until_true(lambda: run.id in worker.operator_state.cancelled)
        gate["go"].set()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
    assert await count_seen(database) == {0: 30, 1: 20}
    async with database.session() as session:
        assert await session.scalar(text("SELECT state FROM worker.run")) == "cancelled"


async def test_a_job_outside_of_a_loop_is_cancelled_where_it_is(fast: Settings, client: Client) -> None:
    run = await client.enqueue(wait_for_go)
    async with working(fast, wait_for_go):
        await asyncio.wait_for(gate["begun"].wait(), 60)
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)


async def test_a_drained_job_goes_back_and_costs_no_try(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(wait_for_go)
    async with working(with_worker(fast, drain_timeout_seconds=0.1), wait_for_go):
        await asyncio.wait_for(gate["begun"].wait(), 60)
    assert await run.status() == "waiting"
    assert await redis.get(f"arq:retry:{run.id}") is None
    gate["go"].set()
    async with working(fast, wait_for_go):
        assert await run.result(timeout=120) == "went"
    assert tries == [1, 1]


async def test_the_second_signal_hastens(fast: Settings, client: Client) -> None:
    run = await client.enqueue(wait_for_go)
    began = time.monotonic()
    async with working(with_worker(fast, drain_timeout_seconds=60), wait_for_go) as worker:
        await asyncio.wait_for(gate["begun"].wait(), 60)
        worker.drain()
        worker.drain()
    assert time.monotonic() - began < 10
    assert await run.status() == "waiting"
