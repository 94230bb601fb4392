"""Plain jobs of all settings at full speed: while nothing dies, each runs exactly once."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.asyncio import Redis

from tests.faults import count_jobs as jobs
from tests.faults.conftest import Fleet
from tests.support.waiting import until
from worker import Client
from worker.job.propagation import traceparent
from worker.queue import keys

MEMBERS = 5
#: Leases are renewed each 1.7 s, while jobs end: the renewal must not take an ended job for a lost one.
SETTINGS = {
    "LONGHAUL_WORKER__PACKAGES": '["tests.faults.count_jobs"]',
    "LONGHAUL_WORKER__MAX_JOBS": "100",
    "LONGHAUL_WORKER__LEASE_SECONDS": "5",
}


async def enqueue_all(client: Client, each: int) -> dict[str, int]:
    """Enqueue `each` runs of each kind, in a random order. Return the attempts that are expected, by field."""
    many = (jobs.unkept, jobs.kept, jobs.retried, jobs.alone, jobs.limited, jobs.rated, jobs.urgent, jobs.in_a_thread)
    names = [one.name for one in (*many, jobs.delayed, jobs.first, jobs.following, jobs.member, jobs.with_headers)]
    expected = {f"{name}:{n}:1": 1 for name in names for n in range(each)}
    expected |= {f"retried:{n}:2": 1 for n in range(each)}
    expected |= {f"after_group:{n}:1": 1 for n in range(0, each, MEMBERS)}
    calls = [_enqueue_one(client, number) for number in range(each)]
    for at in range(0, each, 500):
        numbers = range(at, min(at + 500, each))
        calls += [client.enqueue_many(one, [{"n": n} for n in numbers]) for one in many]  # type: ignore[attr-defined]
    random.shuffle(calls)
    for at in range(0, len(calls), 100):
        await asyncio.gather(*calls[at : at + 100])
    return expected


async def _enqueue_one(client: Client, n: int) -> None:
    await client.enqueue(jobs.delayed.options(delay=random.random()), n=n)
    await client.enqueue(jobs.first.options(then=jobs.following.call(n=n)), n=n)
    if n % MEMBERS == 0:
        calls = [jobs.member.call(n=number) for number in range(n, n + MEMBERS)]
        await client.group(calls, then=jobs.after_group.call(n=n))
    token = traceparent.set(f"00-{n + 1:032x}-{n + 1:016x}-01")
    await client.enqueue(jobs.with_headers, n=n)
    traceparent.reset(token)


async def check_counts(fleet: Fleet, client: Client, redis: Redis, each: int, *, seconds: float) -> None:
    workers = [fleet.start(**SETTINGS) for _ in range(2)]
    await until(lambda: _are_ready(redis, workers))
    expected = await enqueue_all(client, each)
    await until(lambda: _is_empty(redis), seconds=seconds)
    found = {name.decode(): int(times) for name, times in (await redis.hgetall(jobs.COUNTED)).items()}
    assert {name: times for name, times in found.items() if times != 1} == {}, "ran twice, though nothing has died"
    assert found == expected
    assert await redis.hlen(keys.DEAD) == 0
    assert await redis.keys(keys.IN_PROGRESS + "*") == []
    await until(lambda: _are_places_free(redis))  # the last one is released after its run has left the queue
    assert await redis.keys(keys.UNIQUE + "*") == []


async def _is_empty(redis: Redis) -> bool:
    return not await redis.exists("arq:queue")


async def _are_places_free(redis: Redis) -> bool:
    return not await redis.keys(keys.LIMIT + "*")


async def _are_ready(redis: Redis, workers: list[str]) -> bool:
    return await redis.hlen(keys.WORKERS) == len(workers)


async def test_jobs_of_all_settings_run_exactly_once(fleet: Fleet, client: Client, redis: Redis) -> None:
    await check_counts(fleet, client, redis, each=100, seconds=120)


@pytest.mark.long
async def test_100_000_jobs_of_all_settings_run_exactly_once(fleet: Fleet, client: Client, redis: Redis) -> None:
    await check_counts(fleet, client, redis, each=7_200, seconds=1_200)
