"""`fair_by`: of the runs that wait, the values of an argument take turns, whatever their number."""

from __future__ import annotations

import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.waiting import next_millisecond, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.errors import RegistrationError
from worker.queue import keys
from worker.queue.claims import Ack, Claim
from worker.queue.store import QueueStore

pytestmark = pytest.mark.usefixtures("database")

QUEUE = "arq:queue"
order: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    order.clear()


@job(fair_by="tenant")
async def serve(ctx: JobContext, tenant: str, number: int = 0) -> None:
    """Note the tenant."""
    order.append(tenant)


@job(fair_by="tenant", fair_weights={"big": 3})
async def serve_weighted(ctx: JobContext, tenant: str) -> None:
    """Note the tenant."""
    order.append(tenant)


@job(fair_by="tenant", priority=5)
async def serve_first(ctx: JobContext, tenant: str) -> None:
    """Note the tenant."""
    order.append(f"first {tenant}")


@job
async def plain(ctx: JobContext, name: str) -> None:
    """Note the name."""
    order.append(name)


@job(fair_by="tenant", concurrency=1, concurrency_key="tenant")
async def serve_limited(ctx: JobContext, tenant: str) -> None:
    """Note the tenant."""
    order.append(tenant)


JOBS = (serve, serve_weighted, serve_first, plain, serve_limited)


async def serve_until(settings: Settings, count: int) -> None:
    """Run a worker with one slot until so many runs were served."""
    async with working(with_worker(settings, max_jobs=1), *JOBS):
        await until_true(lambda: len(order) >= count)


# --- in a worker


async def test_the_one_run_of_a_tenant_is_second_behind_a_flood_of_another(client: Client, fast: Settings) -> None:
    await client.enqueue_many(serve, [{"tenant": "A", "number": n} for n in range(1_000)])
    await client.enqueue(serve, tenant="B")
    await serve_until(fast, 10)
    assert "B" in order[:2]


async def test_a_tenant_that_comes_during_a_flood_is_next(client: Client, fast: Settings) -> None:
    await client.enqueue_many(serve, [{"tenant": "A"} for _ in range(300)])
    await serve_until(fast, 100)
    served = len(order)
    await client.enqueue(serve, tenant="B")
    await serve_until(fast, served + 10)
    assert "B" in order[served : served + 2]


async def test_a_deferred_run_takes_its_turn_when_it_is_due(client: Client, fast: Settings) -> None:
    later = serve.options(at=datetime.now(UTC) + timedelta(seconds=0.5))
    for tenant in "AB":
        await client.enqueue(later, tenant=tenant)
    await client.enqueue_many(later, [{"tenant": "A"} for _ in range(40)])
    await client.enqueue(later, tenant="C")
    await serve_until(fast, 43)
    assert {"B", "C"} <= set(order[:5])


async def test_runs_of_other_jobs_keep_their_order_and_priorities_come_first(client: Client, fast: Settings) -> None:
    await client.enqueue(plain, name="first")
    await next_millisecond()
    await client.enqueue_many(serve, [{"tenant": "A"} for _ in range(5)])
    await next_millisecond()
    await client.enqueue(plain, name="second")
    await client.enqueue_many(serve_first, [{"tenant": "A"} for _ in range(5)])
    await client.enqueue(serve_first, tenant="B")
    await serve_until(fast, 13)
    assert "first B" in order[:2] and set(order[:6]) == {"first A", "first B"}
    assert order[6:] == ["first", *"AAAAA", "second"]


async def test_a_chain_and_a_group_take_turns_too(client: Client, fast: Settings, redis: Redis) -> None:
    await client.group([serve.call(tenant="A") for _ in range(20)])
    await client.enqueue(plain.options(then=serve.call(tenant="B")), name="plain")
    async with working(with_worker(fast, max_jobs=1), plain):
        await until_true(lambda: order == ["plain"])
    assert len(await redis.hgetall(keys.FAIR_FLOWS + QUEUE)) == 21
    await serve_until(fast, 5)
    assert "B" in order[1:3]


async def test_a_run_that_is_retried_or_over_its_limit_keeps_its_flow(client: Client, fast: Settings) -> None:
    await client.enqueue_many(serve_limited, [{"tenant": "A"} for _ in range(30)])
    await client.enqueue(serve_limited, tenant="B")
    async with working(with_worker(fast, max_jobs=4), *JOBS):
        await until_true(lambda: len(order) == 31)
    assert "B" in order[:5]


# --- in Redis


async def claim_one(store: QueueStore) -> Claim | None:
    claims = (await store.ack_and_claim((), 1, [(QUEUE, 1)])).claims
    return claims[0] if claims else None


async def test_nothing_of_fair_runs_stays_when_they_have_ended(redis: Redis, settings: Settings) -> None:
    store = QueueStore(redis, "north")
    jobs = [(f"{n}", "{}") for n in range(20)]
    await store.enqueue_many(jobs, queue=QUEUE, fair=[f"1 tenant={n % 3}" for n in range(20)], priority=4)
    await store.enqueue("one", "{}", queue=QUEUE, fair="1 tenant=x", delay=3600)
    assert await redis.keys("worker:fair:*")
    await redis.zadd(QUEUE, {"one": 1})  # by hand
    claims = (await store.ack_and_claim((), 50, [(QUEUE, 50)])).claims
    assert len(claims) == 21
    await store.ack_and_claim([Ack(claim, None, 0) for claim in claims], 0, [])
    assert await redis.keys("worker:fair:*") == []


async def test_a_run_that_was_removed_by_hand_is_passed_over(redis: Redis, settings: Settings) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue_many([("a", "{}"), ("b", "{}")], queue=QUEUE, fair=["1 t=a", "1 t=b"])
    await redis.zrem(QUEUE, "a")
    claim = await claim_one(store)
    assert claim is not None and claim.run_id == "b"
    assert await claim_one(store) is None
    assert await redis.hkeys(keys.FAIR_FLOWS + QUEUE) == [b"b"]


async def test_a_run_of_a_stock_arq_worker_is_passed_over(redis: Redis, settings: Settings) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue_many([("a", "{}"), ("b", "{}")], queue=QUEUE, fair=["1 t=a", "1 t=b"])
    await redis.set(keys.IN_PROGRESS + "a", "1")
    claim = await claim_one(store)
    assert claim is not None and claim.run_id == "b"
    assert await claim_one(store) is None


@pytest.mark.parametrize("kind", ["flows", "turns", "later", "next"])
async def test_a_key_of_another_type_loses_no_run(redis: Redis, settings: Settings, kind: str) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue("before", "{}", queue=QUEUE, fair="1 t=a")
    key = f"worker:fair:{kind}:{QUEUE}"
    await redis.delete(key)
    await redis.set(key, "a text")
    await store.enqueue("behind", "{}", queue=QUEUE, fair="1 t=a")
    claims = (await store.ack_and_claim((), 9, [(QUEUE, 9)])).claims
    assert {claim.run_id for claim in claims} == {"before", "behind"}
    await store.requeue(claims[0], delay=0, counts=False)
    claims = [*claims[1:], *(await store.ack_and_claim((), 9, [(QUEUE, 9)])).claims]
    assert (await store.ack_and_claim([Ack(claim, None, 0) for claim in claims], 0, [])).refused == frozenset()
    assert await redis.zcard(QUEUE) == 0


@pytest.mark.parametrize("entry", ["", "no weight", "nan t=a", "-1 t=a", "1e99 t=a", "1", " ", "1 turn"])
async def test_an_entry_that_says_nothing_loses_no_run(redis: Redis, settings: Settings, entry: str) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue("a", "{}", queue=QUEUE, fair="1 t=a")
    await redis.hset(keys.FAIR_FLOWS + QUEUE, "b", entry)
    await redis.zadd(QUEUE, {"b": 1})
    claims = (await store.ack_and_claim((), 9, [(QUEUE, 9)])).claims
    assert {claim.run_id for claim in claims} == {"a", "b"}


@pytest.mark.parametrize("seed", range(5))
async def test_backlogged_flows_are_served_by_their_weights(redis: Redis, settings: Settings, seed: int) -> None:
    """While two flows have runs that wait, neither is ahead of its share by more than a run of each."""
    chance = random.Random(seed)
    store = QueueStore(redis, "north")
    weights = {flow: chance.choice([0.5, 1, 1, 2, 3]) for flow in "abcd"}
    waiting: Counter[str] = Counter()
    flow_of: dict[str, str] = {}
    served: list[str] = []
    #: For each pair of flows: how many of each were served since either had nothing waiting.
    since: dict[tuple[str, str], Counter[str]] = {}
    numbers = iter(range(10_000))
    while len(served) < 250:
        if chance.random() < 0.25 or not waiting.total():
            flow, count = chance.choice("abcd"), chance.choice([1, 2, 30])
            jobs = [(f"r{next(numbers)}", "{}") for _ in range(count)]
            await store.enqueue_many(jobs, queue=QUEUE, fair=[f"{weights[flow]:g} t={flow}"] * count)
            flow_of.update({run_id: flow for run_id, _ in jobs})
            waiting[flow] += count
            continue
        claim = await claim_one(store)
        assert claim is not None
        flow = flow_of.pop(claim.run_id)  # a run that is claimed twice is an error
        if chance.random() < 0.1:
            await store.requeue(claim, delay=0, counts=False)
            flow_of[claim.run_id] = flow
            waiting[flow] += 1
        else:
            await store.ack_and_claim([Ack(claim, None, 0)], 0, [])
        served.append(flow)
        waiting[flow] -= 1
        for one in "abcd":
            for other in "abcd":
                if waiting[one] <= 0 or waiting[other] <= 0:
                    since.pop((one, other), None)
                    continue
                counted = since.setdefault((one, other), Counter())
                counted[flow] += 1
                ahead = counted[one] / weights[one] - counted[other] / weights[other]
                # A batch of one claim gives runs that were requeued their turns later: one more of each.
                assert ahead <= 2 / weights[one] + 2 / weights[other], (one, other, counted, weights, served)


async def test_the_work_of_a_claim_does_not_grow_with_the_flood(redis: Redis, settings: Settings) -> None:
    store = QueueStore(redis, "north")

    async def count_calls(size: int) -> int:
        await redis.flushdb()
        for first in range(0, size, 500):
            jobs = [(f"r{n}", "{}") for n in range(first, first + 500)]
            await store.enqueue_many(jobs, queue=QUEUE, fair=[f"1 t={n % 7}" for n in range(500)])
        await claim_one(store)
        await redis.config_resetstat()
        for _ in range(20):
            assert await claim_one(store) is not None
        return sum(int(found["calls"]) for found in (await redis.info("commandstats")).values())

    assert await count_calls(20_000) <= await count_calls(1_000)


async def test_jobs_that_do_not_use_it_cost_one_look_a_queue(redis: Redis, settings: Settings) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue("a", "{}", queue=QUEUE)
    await redis.config_resetstat()
    claim = await claim_one(store)
    assert claim is not None
    await store.ack_and_claim([Ack(claim, b"{}", 1000)], 0, [])
    commands = await redis.info("commandstats")
    assert commands["cmdstat_exists"]["calls"] <= 5 and "cmdstat_hget" not in commands
    assert await redis.keys("worker:fair:*") == []


# --- declarations


def test_options_that_cannot_work_are_refused() -> None:
    for options, message in (
        ({"fair_by": "nobody"}, "it has no argument 'nobody'; it has name"),
        ({"fair_weights": {"a": 2}}, "fair_weights= needs fair_by="),
        ({"fair_by": "name", "fair_weights": [2]}, r"fair_weights=\[2\]: give a dict"),
        ({"fair_by": "name", "fair_weights": {"a": 0}}, "give a number from 0.001"),
        ({"fair_by": "name", "fair_weights": {"a": float("nan")}}, "give a number from 0.001"),
        ({"fair_by": "name", "fair_weights": {"a": "2"}}, "give a number from 0.001"),
    ):
        with pytest.raises(RegistrationError, match=message):
            job(**options)(plain.function)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("value", "flow"),
    [
        ("north", "1 tenant=north"),
        ("big", "3 tenant=big"),
        ("a b\n", "1 tenant=[0-9a-f]{20}"),
        ("x" * 300, "1 tenant=[0-9a-f]{20}"),
    ],
)
def test_a_flow_is_named_by_the_argument_and_its_value(value: Any, flow: str) -> None:
    assert re.fullmatch(flow, serve_weighted.fair_entry({"tenant": value}))
