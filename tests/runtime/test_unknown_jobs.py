"""Runs of a job that no worker knows are parked, cost nothing, and run when a worker knows the job."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.waiting import until, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, JobContext, JobFailed, Settings, job
from worker.queue import keys
from worker.queue.payload import now_ms

pytestmark = pytest.mark.usefixtures("database")

ORDINARY = "arq:queue"
ran: list[str] = []


@job
async def ping(ctx: JobContext) -> str:
    """A job that the worker knows."""
    return "pong"


@job
async def mail(ctx: JobContext, n: int = 0) -> int:
    """A job that another version of the worker knows."""
    ran.append(ctx.run_id)
    return n


async def put(redis: Redis, ids: list[str], payload: str | None, *, score: int = 0) -> None:
    """Enqueue jobs as `redis-cli` does, with or without a payload."""
    for first in range(0, len(ids), 5_000):
        part = ids[first : first + 5_000]
        if payload is not None:
            await redis.mset({keys.JOB + run_id: payload for run_id in part})
        await redis.zadd(ORDINARY, dict.fromkeys(part, score))


async def claims(redis: Redis) -> int:
    """Return how many jobs workers have claimed."""
    return int((await redis.info("commandstats")).get("cmdstat_getex", {}).get("calls", 0))


async def parked(redis: Redis, count: int, queue: str = ORDINARY) -> bool:
    return int(await redis.zcard(keys.UNKNOWN + queue)) >= count


async def test_run_of_an_unknown_job_is_parked_and_runs_when_a_worker_knows_it(
    fast: Settings, redis: Redis, client: Client
) -> None:
    runs = await client.enqueue_many(mail, [{"n": n} for n in range(20)])
    async with working(fast, ping):
        await until(lambda: parked(redis, 20))
        assert await redis.zcard(keys.awaited("mail", ORDINARY)) == 20
        assert await redis.zcount(ORDINARY, now_ms() + 1_000, "+inf") == 20, "they have left the due order"
        async with working(with_worker(fast, name="new"), ping, mail):
            assert [await run.result(timeout=120) for run in runs] == list(range(20))
    assert await redis.keys("worker:awaited:*") == []
    assert await redis.get(keys.RETRY + runs[0].id) is None, "it cost no attempt"


async def test_run_is_parked_for_its_queue_and_made_due_by_a_worker_of_that_queue_alone(
    fast: Settings, redis: Redis, client: Client
) -> None:
    run = await client.enqueue(mail.options(id="one"), n=1)
    async with working(fast, ping):
        await until(lambda: parked(redis, 1))
    due = await redis.zscore(ORDINARY, "one")
    async with working(with_worker(fast, queue="other", name="other"), mail) as other:
        assert not other.operator_state.are_jobs_awaited
        assert await redis.zscore(ORDINARY, "one") == due
    async with working(fast, mail):
        assert await run.result(timeout=120) == 1


async def test_parked_run_is_cancelled_at_once(fast: Settings, redis: Redis, client: Client) -> None:
    run = await client.enqueue(mail.options(id="one"), n=1)
    async with working(fast, ping):
        await until(lambda: parked(redis, 1))
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)


async def test_parked_run_expires_in_time(fast: Settings, redis: Redis, client: Client) -> None:
    await put(redis, [f"u{n}" for n in range(200)], '{"f": "gone"}')
    async with working(fast, ping):
        await until(lambda: parked(redis, 200))
        run = await client.enqueue(mail.options(id="one", expires=1.0), n=1)
        with pytest.raises(JobFailed, match="expired"):  # with 200 parked runs, the delay would be some 20 s
            await run.result(timeout=120)


async def test_run_that_was_enqueued_again_is_not_made_due_by_an_old_entry(
    fast: Settings, redis: Redis, client: Client
) -> None:
    await redis.zadd(keys.awaited("mail", ORDINARY), {"one": 1_764_170_000_000})
    run = await client.enqueue(mail.options(id="one", delay=3600), n=1)
    async with working(fast, mail, ping):
        await until(lambda: no_keys(redis, "worker:awaited:*"))
        assert await (await client.enqueue(ping)).result(timeout=120) == "pong"
        assert await run.status() == "deferred"


async def no_keys(redis: Redis, pattern: str) -> bool:
    return not await redis.keys(pattern)


@pytest.mark.parametrize("count", [1_000, pytest.param(50_000, marks=pytest.mark.long)])
async def test_parked_runs_are_claimed_some_ten_times_a_second_in_all(
    fast: Settings, redis: Redis, client: Client, count: int
) -> None:
    await put(redis, [f"u{n}" for n in range(count)], '{"f": "gone"}')
    async with working(with_worker(fast, max_jobs=100), ping):
        await until(lambda: parked(redis, count), seconds=300)
        loop = asyncio.get_running_loop()
        before, began = await claims(redis), loop.time()
        await until_true(lambda: loop.time() - began > 3)
        # Those that were parked first are due again after 5 s; with all of them parked, the rest after minutes.
        rate = (await claims(redis) - before) / (loop.time() - began)
        assert rate < 100, f"{rate:.0f} claims a second"
    dues = [score for _, score in await redis.zrange(ORDINARY, 0, -1, withscores=True)]
    soon = sum(score < now_ms() + 10_000 for score in dues)
    assert soon < count / 5, "they would all be due at once"


MANY: dict[str, tuple[str | None, str]] = {
    "one unknown name": ('{"f": "gone"}', "u"),
    "no payload": (None, "u"),
    "junk": ("junk", "u"),
    "an odd name": (json.dumps({"f": "\x1b[31m" + "x" * 300}), "u"),
}


@pytest.mark.parametrize("max_jobs", [1, 10])
@pytest.mark.parametrize("what", MANY)
@pytest.mark.parametrize("count", [1_500, pytest.param(50_000, marks=pytest.mark.long)])
async def test_other_jobs_start_before_many_that_cannot_run(
    fast: Settings, redis: Redis, client: Client, what: str, max_jobs: int, count: int
) -> None:
    payload, prefix = MANY[what]
    async with working(with_worker(fast, max_jobs=max_jobs), ping):
        await (await client.enqueue(ping)).result(timeout=120)
        await put(redis, [f"{prefix}{n}" for n in range(count)], payload, score=1)
        await until(lambda: some_were_claimed(redis, 20))
        steps = []
        for _ in range(5):
            before = await claims(redis)
            run = await client.enqueue(ping)
            assert await run.result(timeout=120) == "pong"
            steps.append(await claims(redis) - before)
        assert await redis.zcount(ORDINARY, "-inf", 1) > 0, "the junk ended before the jobs: enqueue more of it"
    # The result is read some round trips after the start. A slot of each fetch goes to the newest job.
    assert sorted(steps)[2] <= 30 * max_jobs, steps


async def some_were_claimed(redis: Redis, count: int) -> bool:
    return await claims(redis) >= count


@pytest.mark.parametrize("key", ["worker:unknown:arq:queue", "worker:awaited:mail:arq:queue"])
async def test_key_of_a_wrong_type_harms_parking_alone(fast: Settings, redis: Redis, client: Client, key: str) -> None:
    await redis.set(key, "junk")
    run = await client.enqueue(mail.options(id="one"), n=1)

    async def was_claimed() -> bool:
        return bool((await redis.zscore(ORDINARY, "one") or 0) > now_ms() + 500)

    async with working(fast, ping):
        await until(was_claimed)
        assert await (await client.enqueue(ping)).result(timeout=120) == "pong"
    await redis.zadd(ORDINARY, {"one": 0})
    async with working(fast, mail):
        assert await run.result(timeout=120) == 1


async def test_each_of_many_unknown_names_is_parked(fast: Settings, redis: Redis, client: Client) -> None:
    ids: dict[str, Any] = {f"u{n}": json.dumps({"f": f"gone{n}"}) for n in range(500)}
    await redis.mset({keys.JOB + run_id: payload for run_id, payload in ids.items()})
    await redis.zadd(ORDINARY, dict.fromkeys(ids, 0))
    async with working(with_worker(fast, max_jobs=50), ping):
        await until(lambda: parked(redis, 500))
        last = max(score for _, score in await redis.zrange(keys.UNKNOWN + ORDINARY, -1, -1, withscores=True))
        assert last > now_ms() + 10_000, "the delay grows with the number of all parked runs"
