"""A slot under a limit belongs to the owner of its run: acquired, renewed and released with the lease."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.queue import keys
from worker.queue.store import Claim
from worker.runtime.limiter import Limiter

pytestmark = pytest.mark.usefixtures("database")

PLACES = keys.LIMIT + "alone"
WEEK_MS = 7 * 86_400_000
gates: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def new_gates() -> None:
    """Close the gates."""
    gates.update(begun=[], go=asyncio.Event())


@job(concurrency=1)
async def alone(ctx: JobContext, name: str) -> str:
    """Run one at a time."""
    gates["begun"].append(name)
    await gates["go"].wait()
    return name


@job(unique=True)
async def only(ctx: JobContext, name: str) -> str:
    """Run once for each name."""
    gates["begun"].append(name)
    await gates["go"].wait()
    return name


async def has_begun(name: str) -> bool:
    return name in gates["begun"]


async def lives_a_week(redis: Redis, key: str) -> bool:
    return await redis.pttl(key) > WEEK_MS - 60_000


async def test_release_by_a_replaced_owner_leaves_the_place_to_the_new_one(redis: Redis) -> None:
    frozen, successor = Limiter(redis, "frozen"), Limiter(redis, "successor")
    claim = Claim("X", "arq:queue", 0, b"", 1)
    await redis.set(keys.IN_PROGRESS + "X", "frozen")
    assert await frozen.acquire(alone, claim, {}) is None
    await redis.set(keys.IN_PROGRESS + "X", "successor")  # the lease had expired, and the run was taken over
    assert await successor.acquire(alone, claim, {}) is None
    await frozen.release(alone, claim, {})
    assert await redis.zrange(PLACES, 0, -1) == [b"X"]
    await redis.set(keys.IN_PROGRESS + "Y", "other")
    assert await Limiter(redis, "other").acquire(alone, Claim("Y", "arq:queue", 0, b"", 1), {}) is not None
    await successor.release(alone, claim, {})
    assert await redis.zrange(PLACES, 0, -1) == []


async def test_late_release_by_the_first_claim_leaves_the_place_to_the_second_claim_of_one_worker(redis: Redis) -> None:
    limiter = Limiter(redis, "owner")
    first, second = (Claim("X", "arq:queue", 0, b"", number, number=number) for number in (1, 2))
    await redis.set(keys.IN_PROGRESS + "X", "owner")
    assert await limiter.acquire(alone, first, {}) is None
    assert await limiter.acquire(alone, second, {}) is None  # its lease was lost, and taken again by the same worker
    await limiter.release(alone, first, {})
    assert await redis.zrange(PLACES, 0, -1, withscores=True) == [(b"X", 2)]
    await redis.set(keys.IN_PROGRESS + "Y", "owner")
    assert await limiter.acquire(alone, Claim("Y", "arq:queue", 0, b"", 1, number=3), {}) is not None
    await limiter.release(alone, second, {})
    assert await redis.zrange(PLACES, 0, -1) == []


async def test_job_that_its_worker_has_lost_and_claimed_again_runs_once_at_a_time(
    fast: Settings, redis: Redis, client: Client
) -> None:
    """Another worker had the run in between: the first claim ends neither the run nor the place of the second."""
    async with working(fast, alone) as worker:
        first = await client.enqueue(alone, name="first")
        await until(lambda: has_begun("first"))
        old = worker.execution(first.id)
        assert old is not None
        # Another worker takes the run over and puts it back, before this worker renews its lease.
        async with redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.IN_PROGRESS + first.id)
            pipe.zadd("arq:queue", {first.id: 1})
            await pipe.execute()
        await until(lambda: _is_claimed_again(worker, first.id, old))
        await until(lambda: _has_begun_times(2))
        second = await client.enqueue(alone, name="second")
        await until(lambda: _is_held(redis, second.id))
        gates["go"].set()
        assert await first.result(timeout=120) == "first"
        assert await second.result(timeout=120) == "second"
    assert gates["begun"] == ["first", "first", "second"]
    assert await redis.keys(keys.LIMIT + "*") == []


async def _is_claimed_again(worker: Any, run_id: str, old: Any) -> bool:
    found = worker.execution(run_id)
    return found is not None and found is not old


async def _has_begun_times(count: int) -> bool:
    return len(gates["begun"]) == count


async def test_place_is_renewed_with_its_lease_and_put_back(fast: Settings, redis: Redis, client: Client) -> None:
    async with working(fast, alone):
        first = await client.enqueue(alone, name="first")
        await until(lambda: has_begun("first"))
        await redis.pexpire(PLACES, 60_000)
        await until(lambda: lives_a_week(redis, PLACES), seconds=8)
        await redis.delete(PLACES)
        await until(lambda: lives_a_week(redis, PLACES), seconds=8)
        assert await redis.zrange(PLACES, 0, -1) == [first.id.encode()]
        second = await client.enqueue(alone, name="second")
        await until(lambda: _is_held(redis, second.id))
        assert gates["begun"] == ["first"]
        gates["go"].set()
        assert await second.result(timeout=120) == "second"


async def test_places_and_marks_hold_in_a_redis_that_was_emptied(fast: Settings, redis: Redis, client: Client) -> None:
    async with working(fast, alone, only):
        first = await client.enqueue(alone, name="first")
        unique = await client.enqueue(only, name="unique")
        await until(lambda: has_begun("first"))
        await until(lambda: has_begun("unique"))
        [mark] = await redis.keys(keys.UNIQUE + "*")
        await redis.flushall()
        await until(lambda: lives_a_week(redis, PLACES), seconds=8)
        await until(lambda: lives_a_week(redis, mark.decode()), seconds=8)
        again = await client.enqueue(only, name="unique")
        assert (again.is_new, again.id) == (False, unique.id)
        second = await client.enqueue(alone, name="second")
        await until(lambda: _is_held(redis, second.id))
        assert sorted(gates["begun"]) == ["first", "unique"]
        gates["go"].set()
        assert await first.result(timeout=120) == "first"
        assert await second.result(timeout=120) == "second"
    assert await redis.keys(keys.LIMIT + "*") == await redis.keys(keys.UNIQUE + "*") == []


async def _is_held(redis: Redis, run_id: str) -> bool:
    return await redis.zscore(keys.HELD + "alone", run_id) is not None


async def test_runs_far_behind_in_line_ask_seldom_and_run_in_their_turn(
    fast: Settings, redis: Redis, client: Client
) -> None:
    async with working(fast, alone):
        runs = await client.enqueue_many(alone, [{"name": str(number)} for number in range(40)])
        await until(lambda: _are_held(redis, 39))
        seconds, _ = await redis.time()
        dues = [score / 1000 - seconds for _, score in await redis.zrange("arq:queue", 0, -1, withscores=True)]
        assert max(dues) > 20, "the last one is not asked again soon"
        gates["go"].set()
        for run in runs:
            await run.result(timeout=120)  # each place that is released makes the next one due


async def _are_held(redis: Redis, count: int) -> bool:
    return await redis.zcard(keys.HELD + "alone") == count
