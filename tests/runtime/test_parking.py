"""Paused runs are parked, so that no worker claims them repeatedly, and become due when the pause is removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, JobContext, Settings, job
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")


@job
async def mail(ctx: JobContext, n: int) -> int:
    """The job that is paused."""
    return n


@job
async def other(ctx: JobContext) -> str:
    """A job that is not paused."""
    return "done"


@job(concurrency=1)
async def alone(ctx: JobContext, n: int) -> None:
    """A job of which one runs, until it is cancelled."""
    await asyncio.Event().wait()


@job(rate="1/minute")
async def seldom(ctx: JobContext, n: int) -> int:
    """A job that runs once a minute."""
    return n


async def is_parked(redis: Redis, order: str, count: int) -> bool:
    return await redis.hlen(keys.PARKED_RUNS + order) == count


async def is_shown_as_paused(run: Any) -> bool:
    return bool(await run.status() == "paused")


async def commands_of(redis: Redis) -> int:
    """Return how many commands the server has processed."""
    return int((await redis.info("stats"))["total_commands_processed"])


@pytest.mark.parametrize("how", ["run", "job"])
async def test_paused_run_is_parked_and_runs_when_its_order_is_taken_back(
    fast: Settings, redis: Redis, client: Client, how: str
) -> None:
    order = "one" if how == "run" else "mail"
    await redis.sadd(keys.PAUSED, order)
    run = await client.enqueue(mail.options(id="one"), n=1)
    async with working(fast, mail):
        await until(lambda: is_parked(redis, order, 1))
        assert await redis.smembers(keys.PARKED) == {order.encode()}
        await until(lambda: is_shown_as_paused(run))
        assert await redis.get(keys.RETRY + "one") is None, "it cost no attempt"
        await redis.srem(keys.PAUSED, order)
        assert await run.result(timeout=120) == 1
        assert await redis.keys(keys.PARKED + "*") == []


async def test_parked_run_is_cancelled_at_once(fast: Settings, redis: Redis, client: Client) -> None:
    await redis.sadd(keys.PAUSED, "mail")
    runs = await client.enqueue_many(mail, [{"n": n} for n in range(3)])
    async with working(fast, mail):
        await until(lambda: is_parked(redis, "mail", 3))
        await redis.sadd(keys.CANCELLED, runs[0].id)  # as an operator does in redis-cli
        await runs[1].cancel()
        for run in runs[:2]:
            with pytest.raises(JobCancelled):
                await run.result(timeout=120)
        await until(lambda: is_shown_as_paused(runs[2]))
        await redis.srem(keys.PAUSED, "mail")
        assert await runs[2].result(timeout=120) == 2


async def test_run_that_another_order_pauses_is_parked_for_that_one(
    fast: Settings, redis: Redis, client: Client
) -> None:
    await redis.sadd(keys.PAUSED, "mail", "one")
    run = await client.enqueue(mail.options(id="one"), n=1)
    async with working(fast, mail):
        await until(lambda: is_parked(redis, "one", 1))
        await redis.srem(keys.PAUSED, "one")
        await until(lambda: is_parked(redis, "mail", 1))
        await until(lambda: is_shown_as_paused(run))
        await redis.srem(keys.PAUSED, "mail")
        assert await run.result(timeout=120) == 1


async def test_run_whose_id_was_enqueued_again_is_not_made_due_by_an_old_entry(
    fast: Settings, redis: Redis, client: Client
) -> None:
    await redis.hset(keys.PARKED_RUNS + "mail", "one", "1764170000000 arq:queue")
    await redis.sadd(keys.PARKED, "mail")
    run = await client.enqueue(mail.options(id="one", delay=3600), n=1)
    async with working(fast, mail, other):
        await until(lambda: is_parked(redis, "mail", 0))
        assert await (await client.enqueue(other)).result(timeout=120) == "done"
        assert await run.status() == "deferred"


async def costs_nothing(redis: Redis) -> bool:
    """Return whether three seconds pass with no command for any paused run."""
    before, began = await commands_of(redis), time.monotonic()
    await until(lambda: _is(lambda: time.monotonic() - began > 3))
    # The mirror, the health line, cron and this test: some hundreds; 10,000 paused runs would be 9,000.
    return await commands_of(redis) - before < 1000


async def check_paused_runs_cost_nothing(settings: Settings, redis: Redis, client: Client, count: int) -> None:
    await redis.sadd(keys.PAUSED, "mail")
    runs: list[Any] = []
    for first in range(0, count, 1000):
        runs += await client.enqueue_many(mail, [{"n": n} for n in range(first, first + 1000)])
    async with working(with_worker(settings, max_jobs=100), mail, other):
        await until(lambda: is_parked(redis, "mail", count), seconds=120)
        for run in runs[:: count // 10]:
            await until(lambda run=run: is_shown_as_paused(run))
        assert await (await client.enqueue(other)).result(timeout=120) == "done"  # the connections are open
        # The mirror writes the entries of so many runs for some seconds, more of them on a busy machine.
        await until(lambda: costs_nothing(redis), seconds=120)
        assert await (await client.enqueue(other)).result(timeout=120) == "done"
        assert await is_parked(redis, "mail", count)


async def test_paused_runs_cost_nothing(settings: Settings, redis: Redis, client: Client) -> None:
    await check_paused_runs_cost_nothing(settings, redis, client, 1000)


@pytest.mark.long
async def test_ten_thousand_paused_runs_cost_nothing(settings: Settings, redis: Redis, client: Client) -> None:
    await check_paused_runs_cost_nothing(settings, redis, client, 10_000)


async def check_waiting_runs_cost_little(settings: Settings, redis: Redis, client: Client, count: int) -> None:
    """Runs that wait for a place, and runs whose moment under a rate has not come."""
    for first in range(0, count, 500):
        await client.enqueue_many(alone, [{"n": n} for n in range(first, first + 500)])
    await client.enqueue_many(seldom, [{"n": n} for n in range(200)])
    async with working(with_worker(settings, max_jobs=100, drain_timeout_seconds=0.1), alone, seldom, other):
        await until(lambda: _has_in_line(redis, count - 1), seconds=120)
        await until(lambda: _has_reserved(redis, 199), seconds=120)
        assert await (await client.enqueue(other)).result(timeout=120) == "done"
        # The first ones of the line ask each five seconds, the others more and more seldom: some claims a second.
        await until(lambda: _is_quiet(redis, 600), seconds=60)
        assert await (await client.enqueue(other)).result(timeout=120) == "done"


async def _is_quiet(redis: Redis, commands: int) -> bool:
    """Return whether at most so many commands, including those of scripts, are processed in three seconds."""
    before = await commands_of(redis)
    await asyncio.sleep(3)  # the length of the measurement
    return await commands_of(redis) - before <= commands


async def _has_in_line(redis: Redis, count: int) -> bool:
    return await redis.zcard(keys.HELD + "alone") == count


async def _has_reserved(redis: Redis, count: int) -> bool:
    return len(await redis.keys(keys.RESERVED + "*")) == count


@pytest.mark.long
async def test_waiting_runs_cost_little(settings: Settings, redis: Redis, client: Client) -> None:
    await check_waiting_runs_cost_little(settings, redis, client, 1000)


@pytest.mark.long
async def test_ten_thousand_waiting_runs_cost_little(settings: Settings, redis: Redis, client: Client) -> None:
    await check_waiting_runs_cost_little(settings, redis, client, 10_000)


async def test_worker_with_5000_slots_claims_5000_jobs_at_once(fast: Settings, redis: Redis, client: Client) -> None:
    runs: list[Any] = []
    for first in range(0, 5000, 1000):
        runs += await client.enqueue_many(mail, [{"n": n} for n in range(first, first + 1000)])
    async with working(with_worker(fast, max_jobs=5000), mail):
        await until(lambda: _is_empty(redis, "arq:queue"), seconds=120)
        results = await asyncio.gather(*(run.result(timeout=120) for run in runs[::500]))
    assert results == list(range(0, 5000, 500))
    assert await redis.hlen(keys.DEAD) == 0


async def _is(look: Callable[[], bool]) -> bool:
    return look()


async def _is_empty(redis: Redis, queue: str) -> bool:
    return not await redis.exists(queue)
