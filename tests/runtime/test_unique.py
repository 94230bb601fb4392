"""Unique jobs: while they run, while they wait, for a time."""

from __future__ import annotations

import time

import pytest
from redis.asyncio import Redis

from tests.runtime.limited_jobs import (
    alone,
    nothing_seen,  # noqa: F401  (used by each test)
    seen,
)
from tests.support.waiting import until, until_status
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.queue import keys


@job(unique="n", unique_while="waiting")
async def next_one(ctx: JobContext, n: int, note: str = "") -> str:
    """Allow one waiting job for each n."""
    await seen["gate"].wait()
    return note


@job(unique=True, unique_for=0.4)
async def once_a_while(ctx: JobContext) -> None:
    """One in 0.4 seconds."""


pytestmark = pytest.mark.usefixtures("database")


async def test_a_unique_job_is_one_run_as_long_as_it_is_in_the_queue(fast: Settings, client: Client) -> None:
    first = await client.enqueue(alone, 1)
    again = await client.enqueue(alone, n=1)
    other = await client.enqueue(alone, 2)
    assert (first.is_new, again.is_new, other.is_new) == (True, False, True)
    assert again.id == first.id != other.id
    async with working(fast, alone):
        await until_status(first, "running")
        assert (await client.enqueue(alone, 1)).id == first.id
        seen["gate"].set()
        assert await again.result(timeout=120) == 1
        new = await client.enqueue(alone, 1)  # its result is known, and it is over
        assert new.is_new
        assert new.id != first.id
        assert await new.result(timeout=120) == 1


async def test_a_unique_job_that_is_drained_is_not_kept_out_by_its_own_mark(fast: Settings, client: Client) -> None:
    run = await client.enqueue(alone, 5)
    async with working(with_worker(fast, drain_timeout_seconds=0), alone):
        await until_status(run, "running")
    assert await run.status() == "waiting"
    assert (await client.enqueue(alone, 5)).id == run.id
    seen["gate"].set()
    async with working(fast, alone):
        assert await run.result(timeout=120) == 5


async def test_unique_while_it_waits(fast: Settings, client: Client) -> None:
    first = await client.enqueue(next_one, 1, note="first")
    assert (await client.enqueue(next_one, 1, note="other")).id == first.id  # the note does not count
    async with working(with_worker(fast, max_jobs=1), next_one):
        await until_status(first, "running")
        second = await client.enqueue(next_one, 1, note="second")
        assert second.is_new
        assert not (await client.enqueue(next_one, 1)).is_new
        seen["gate"].set()
        assert [await first.result(timeout=120), await second.result(timeout=120)] == ["first", "second"]


async def test_the_mark_of_a_unique_job_goes_with_its_run_unless_it_may_come_again(
    fast: Settings, client: Client, redis: Redis
) -> None:
    @job(unique=True, max_attempts=1)
    async def numbered(ctx: JobContext, n: int) -> None:
        """Fail, or not."""
        if n == 13:
            raise ValueError("unlucky")

    runs = [await client.enqueue(numbered, n=n) for n in range(12, 15)]
    cancelled = await client.enqueue(numbered.options(delay=60), n=15)
    await cancelled.cancel()
    marks = {raw: await redis.get(raw) for raw in await redis.keys("worker:unique:*")}
    assert sorted(marks.values()) == sorted(run.id.encode() for run in [*runs, cancelled])
    stolen = next(raw for raw, run_id in marks.items() if run_id == runs[2].id.encode())
    await redis.set(stolen, "another run")
    async with working(fast, numbered):
        for run in (*runs, cancelled):
            await until(lambda run=run: redis.exists(keys.RESULT + run.id))
    left = {raw: await redis.get(raw) for raw in await redis.keys("worker:unique:*")}
    assert sorted(left.values()) == sorted([b"another run", runs[1].id.encode()])


async def test_unique_for_a_time(fast: Settings, client: Client, redis: Redis) -> None:
    async with working(fast, once_a_while):
        first = await client.enqueue(once_a_while)
        await first.result(timeout=120)
        assert not (await client.enqueue(once_a_while)).is_new

        async def is_new() -> bool:
            return (await client.enqueue(once_a_while)).is_new

        await until(is_new)


async def test_one_that_waits_is_replaced_and_one_that_runs_is_not(
    fast: Settings, client: Client, redis: Redis
) -> None:
    first = await client.enqueue(next_one.options(id="d", delay=60), 1, note="first")
    again = await client.enqueue(next_one.options(id="d", delay=0, replace=True), 1, note="again")
    assert (again.id, again.is_new, again.replaced) == (first.id, False, True)
    async with working(fast, next_one):
        await until_status(first, "running")
        late = await client.enqueue(next_one.options(id="d", replace=True), 1, note="late")
        assert (late.is_new, late.replaced) == (False, False)
        seen["gate"].set()
        assert await first.result(timeout=120) == "again"
    put_off = await client.enqueue(alone.options(delay=30), 7)
    moved = await client.enqueue(alone.options(delay=60, replace=True), 7)
    assert moved.id == put_off.id
    assert await redis.zscore("arq:queue", moved.id) > time.time() * 1000 + 50_000
