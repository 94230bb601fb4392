"""Successors of a run: chains, and callbacks of groups, each once, despite repetition, loss or retry."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.queue.chained_jobs import (
    ALL,
    QUEUE,
    add,
    called,
    calls,
    done,
    double,
    ending,
    fail,
    fresh,  # noqa: F401  (used by each test)
    walk,
)
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import working
from worker import (
    PREVIOUS_RESULT,
    Client,
    InvalidArguments,
    JobCancelled,
    JobContext,
    JobFailed,
    Settings,
    job,
)
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.claims import Ack
from worker.queue.commands import retry_run

pytestmark = pytest.mark.usefixtures("database")


@job(unique=True)
async def alone(ctx: JobContext) -> None:
    """Be the only one."""


# --- chains


async def test_a_chain_runs_one_after_the_other_and_hands_results_on(fast: Settings, client: Client) -> None:
    run = await client.enqueue(
        double.options(then=[add.call(number=PREVIOUS_RESULT, more=5), done.call(), double.call(21)]), number=4
    )
    async with working(fast, *ALL):
        assert await run.result(timeout=120) == 8
        assert [await one.result(timeout=120) for one in run.next_runs] == [13, "done", 42]
    assert calls == [("double", 4), ("add", 8, 5), ("done",), ("double", 21)]


async def test_a_call_may_have_what_follows_it_and_options_of_its_own(
    fast: Settings, client: Client, redis: Redis
) -> None:
    last = done.options(queue="arq:other", priority=4, delay=0.2)
    run = await client.enqueue(double.options(then=add.options(then=last.call()).call(3)), number=4)
    async with working(fast, *ALL):
        await run.next_runs[0].result(timeout=120)
    # No worker serves that queue.
    assert await redis.zscore(keys.priority_line("arq:other", 4), run.next_runs[1].id)
    due = await redis.zscore("arq:other", run.next_runs[1].id)
    ended = json.loads(await redis.get(keys.RESULT + run.next_runs[0].id))["ft"]
    assert 100 <= due - ended <= 400
    assert (await run.next_runs[1].status()) in ("deferred", "waiting")


async def test_what_follows_a_walk_comes_when_the_ledger_has_its_end(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 25)
    run = await client.enqueue(walk.options(then=add.call(number=PREVIOUS_RESULT)))
    async with working(fast, *ALL):
        assert await run.next_runs[0].result(timeout=120) == 26


async def test_a_failure_ends_the_chain_and_its_retry_goes_on(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    fail["now"] = True
    run = await client.enqueue(double.options(then=[add.call(number=PREVIOUS_RESULT), done.call()]), number=1)
    async with working(fast, *ALL):
        for one in run.next_runs:
            with pytest.raises(JobFailed, match=f"not begun: double {run.id}: .*not today"):
                await one.result(timeout=120)
        fail["now"] = False
        assert await retry_run(redis, Ledger(database, "north"), run.id, from_start=False)
        await until(lambda: called(("done",)))
        assert await run.next_runs[1].result(timeout=120) == "done"
    assert calls == [("double", 1), ("double", 1), ("add", 2, 1), ("done",)]


async def test_a_cancellation_ends_the_chain(fast: Settings, client: Client) -> None:
    run = await client.enqueue(double.options(then=done.call(), delay=60), number=1)
    await run.cancel()
    async with working(fast, *ALL):
        with pytest.raises(JobCancelled, match="not begun"):
            await run.next_runs[0].result(timeout=120)
    assert calls == []


async def test_each_run_of_enqueue_many_has_its_own_followers(fast: Settings, client: Client) -> None:
    runs = await client.enqueue_many(
        double.options(then=add.call(number=PREVIOUS_RESULT)), [{"number": n} for n in range(3)]
    )
    async with working(fast, *ALL):
        assert [await run.next_runs[0].result(timeout=120) for run in runs] == [1, 3, 5]


async def test_a_run_that_is_known_has_no_new_followers(client: Client) -> None:
    first = await client.enqueue(double.options(id="one", then=done.call()), number=1)
    second = await client.enqueue(double.options(id="one", then=done.call()), number=1)
    assert len(first.next_runs) == 1
    assert second.next_runs == ()


async def test_a_chain_by_hand_in_json(fast: Settings, client: Client, redis: Redis) -> None:
    payload = {"f": "double", "k": {"number": 2}, "then": [{"f": "add", "k": {"more": 3}, "r": "number"}]}
    await redis.set("arq:job:by-hand", json.dumps(payload))
    await redis.zadd("arq:queue", {"by-hand": 0})
    async with working(fast, *ALL):
        assert await client.run("by-hand:then").result(timeout=120) == 7


async def test_a_chain_by_hand_after_the_longest_id(fast: Settings, client: Client, redis: Redis) -> None:
    first, calls_ = "x" * 500, [{"f": "add", "k": {"more": 3}, "r": "number"}, {"f": "double", "r": "number"}]
    await redis.set(f"arq:job:{first}", json.dumps({"f": "double", "k": {"number": 2}, "then": calls_}))
    await redis.zadd("arq:queue", {first: 0})
    second = "then:" + hashlib.sha256(f"{first}:then".encode()).hexdigest()
    async with working(fast, *ALL):
        assert await client.run(f"{second}:then").result(timeout=120) == 14
        assert await client.run(second).result(timeout=120) == 7


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ({}, "then is not a list"),
        ([{"k": {}}], "an entry that is no call"),
        ([{"f": "add", "d": "soon"}], "whose d cannot be 'soon'"),
        ([{"f": "add", "p": 12}], "p cannot be 12"),
        ([{"f": "add", "surprise": 1}], "whose surprise cannot be 1"),
    ],
)
async def test_a_chain_that_cannot_be_read_is_refused_before_its_first_run(
    fast: Settings, client: Client, redis: Redis, then: Any, message: str
) -> None:
    await redis.set("arq:job:bent", json.dumps({"f": "double", "k": {"number": 2}, "then": then or {"f": 1}}))
    await redis.zadd("arq:queue", {"bent": 0})
    async with working(fast, *ALL):
        with pytest.raises(JobFailed, match=message):
            await client.run("bent").result(timeout=120)
    assert calls == []


def test_calls_that_make_no_sense_are_refused_where_they_are_made() -> None:
    with pytest.raises(InvalidArguments, match="number: input should be a valid integer"):
        add.call(number="much")
    with pytest.raises(InvalidArguments, match="has no argument size"):
        add.call(number=1, size=PREVIOUS_RESULT)
    with pytest.raises(InvalidArguments, match="cannot both be PREVIOUS_RESULT"):
        add.call(number=PREVIOUS_RESULT, more=PREVIOUS_RESULT)
    with pytest.raises(InvalidArguments, match="give PREVIOUS_RESULT by name"):
        add.call(PREVIOUS_RESULT)
    with pytest.raises(InvalidArguments, match="unique"):
        alone.call()
    with pytest.raises(InvalidArguments, match="no id="):
        done.options(id="x").call()
    with pytest.raises(InvalidArguments, match="no id="):
        done.options(at=datetime.now(UTC)).call()
    with pytest.raises(InvalidArguments, match="then= takes calls"):
        done.options(then=[done])  # type: ignore[list-item]


# --- once, whatever is repeated


async def test_a_turn_that_is_repeated_puts_the_next_one_there_once(client: Client, redis: Redis) -> None:
    run = await client.enqueue(double.options(then=done.call()), number=1)
    store, _, ended = await ending(redis, run.id)
    turned = await store.ack_and_claim([ended], 1, [(QUEUE, 1)])
    assert [one.run_id for one in turned.claims] == [run.next_runs[0].id]  # claimed in the same call
    await store.ack_and_claim([Ack(turned.claims[0], None, 0)], 0, [])  # it has run, and is forgotten
    assert await redis.keys("*") == []
    await store.ack_and_claim([ended], 1, [(QUEUE, 1)])  # the answer to the first had been lost
    assert await redis.keys("*") == []


async def test_the_end_of_a_run_that_another_worker_has_puts_nothing_there(client: Client, redis: Redis) -> None:
    run = await client.enqueue(double.options(then=done.call()), number=1)
    store, _, ended = await ending(redis, run.id)
    await redis.set(keys.IN_PROGRESS + run.id, "south")
    turned = await store.ack_and_claim([ended], 0, [])
    assert turned.refused == {run.id}
    assert await redis.exists(keys.JOB + run.next_runs[0].id) == 0


async def test_the_word_that_a_run_was_not_begun_is_void_when_it_is(client: Client, redis: Redis) -> None:
    run = await client.enqueue(double.options(then=done.call()), number=1)
    store, _, ended = await ending(redis, run.id)
    await store.groups.publish_skipped([run.next_runs[0].id], b"not begun", 60_000)
    await store.ack_and_claim([ended], 0, [])
    assert await redis.exists(keys.RESULT + run.next_runs[0].id) == 0
    assert await run.next_runs[0].status() == "waiting"
