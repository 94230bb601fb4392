"""Successors of a run: chains, and callbacks of groups, each once, despite repetition, loss or retry."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.claims import claim_jobs
from tests.support.waiting import until
from tests.support.workers import working
from worker import (
    PREVIOUS_RESULT,
    Client,
    InvalidArguments,
    JobCancelled,
    JobContext,
    JobFailed,
    NonRetryableError,
    Settings,
    job,
)
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.chain import make_follow_up
from worker.queue.claims import Ack, Claim
from worker.queue.commands import retry_run
from worker.queue.payload import decode_payload
from worker.queue.store import QueueStore
from worker.types import Call

pytestmark = pytest.mark.usefixtures("database")

QUEUE = "arq:queue"

calls: list[Any] = []
fail: dict[str, bool] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    calls.clear()
    fail["now"] = False


@job
async def double(ctx: JobContext, number: int) -> int:
    """Double a number."""
    calls.append(("double", number))
    if fail["now"]:
        raise NonRetryableError("not today")
    return 2 * number


@job
async def add(ctx: JobContext, number: int, more: int = 1) -> int:
    """Add to a number."""
    calls.append(("add", number, more))
    return number + more


@job
async def total(ctx: JobContext, numbers: list[int | None], name: str = "") -> str:
    """Sum up."""
    calls.append(("total", numbers))
    return f"{name}{sum(number or 0 for number in numbers)}"


@job
async def done(ctx: JobContext) -> str:
    """Record the call."""
    calls.append(("done",))
    return "done"


@job
async def walk(ctx: JobContext) -> int:
    """Walk a table."""
    rows = 0
    async for batch in ctx.chunks(select(Author), size=10):
        rows += len(batch)
    calls.append(("walk", rows))
    return rows


@job(unique=True)
async def alone(ctx: JobContext) -> None:
    """Be the only one."""


ALL = (double, add, total, done, walk)

# --- chains


async def test_a_chain_runs_one_after_the_other_and_hands_results_on(fast: Settings, client: Client) -> None:
    run = await client.enqueue(
        double.options(then=[add.call(number=PREVIOUS_RESULT, more=5), done.call(), double.call(21)]), number=4
    )
    async with working(fast, *ALL):
        assert await run.result(timeout=60) == 8
        assert [await one.result(timeout=60) for one in run.next_runs] == [13, "done", 42]
    assert calls == [("double", 4), ("add", 8, 5), ("done",), ("double", 21)]


async def test_a_call_may_have_what_follows_it_and_options_of_its_own(
    fast: Settings, client: Client, redis: Redis
) -> None:
    last = done.options(queue="arq:other", priority=4, delay=0.2)
    run = await client.enqueue(double.options(then=add.options(then=last.call()).call(3)), number=4)
    async with working(fast, *ALL):
        await run.next_runs[0].result(timeout=60)
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
        assert await run.next_runs[0].result(timeout=60) == 26


async def test_a_failure_ends_the_chain_and_its_retry_goes_on(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    fail["now"] = True
    run = await client.enqueue(double.options(then=[add.call(number=PREVIOUS_RESULT), done.call()]), number=1)
    async with working(fast, *ALL):
        for one in run.next_runs:
            with pytest.raises(JobFailed, match=f"not begun: double {run.id}: .*not today"):
                await one.result(timeout=60)
        fail["now"] = False
        assert await retry_run(redis, Ledger(database, "north"), run.id, from_start=False)
        await until(lambda: _called(("done",)))
        assert await run.next_runs[1].result(timeout=60) == "done"
    assert calls == [("double", 1), ("double", 1), ("add", 2, 1), ("done",)]


async def _called(what: Any) -> bool:
    return what in calls


async def test_a_cancellation_ends_the_chain(fast: Settings, client: Client) -> None:
    run = await client.enqueue(double.options(then=done.call(), delay=60), number=1)
    await run.cancel()
    async with working(fast, *ALL):
        with pytest.raises(JobCancelled, match="not begun"):
            await run.next_runs[0].result(timeout=60)
    assert calls == []


async def test_each_run_of_enqueue_many_has_its_own_followers(fast: Settings, client: Client) -> None:
    runs = await client.enqueue_many(
        double.options(then=add.call(number=PREVIOUS_RESULT)), [{"number": n} for n in range(3)]
    )
    async with working(fast, *ALL):
        assert [await run.next_runs[0].result(timeout=60) for run in runs] == [1, 3, 5]


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
        assert await client.run("by-hand:then").result(timeout=60) == 7


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
            await client.run("bent").result(timeout=60)
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


async def ending(redis: Redis, run_id: str) -> tuple[QueueStore, Claim, Ack]:
    """Claim a run, and return its successful end."""
    store = QueueStore(redis, "north")
    [claim] = [claim for claim in await claim_jobs(store, QUEUE, 10) if claim.run_id == run_id]
    assert claim.payload is not None
    payload = decode_payload(claim.payload, accept_pickle=False)
    next_ = make_follow_up(payload, run_id=run_id, queue=QUEUE, success=True, result="2")
    return store, claim, Ack(claim, b"{}", 0, next_)


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


async def test_a_member_that_ends_twice_counts_once(client: Client, redis: Redis) -> None:
    group = await client.group([double.call(1), double.call(2)], then=done.call())
    assert group.callback is not None
    first = await ending(redis, group.runs[0].id)
    await first[0].ack_and_claim([first[2]], 0, [])
    await first[0].ack_and_claim([first[2]], 0, [])
    # It runs once more, e.g. by a retry of an operator, without data of its first run.
    await redis.set(keys.JOB + group.runs[0].id, first[1].payload or b"")
    await redis.zadd(QUEUE, {group.runs[0].id: 1})
    again = await ending(redis, group.runs[0].id)
    await again[0].ack_and_claim([again[2]], 0, [])
    assert await group.progress() == (2, 1, False)
    assert await redis.exists(keys.JOB + group.callback.id) == 0


async def test_the_word_that_a_run_was_not_begun_is_void_when_it_is(client: Client, redis: Redis) -> None:
    run = await client.enqueue(double.options(then=done.call()), number=1)
    store, _, ended = await ending(redis, run.id)
    await store.groups.publish_skipped([run.next_runs[0].id], b"not begun", 60_000)
    await store.ack_and_claim([ended], 0, [])
    assert await redis.exists(keys.RESULT + run.next_runs[0].id) == 0
    assert await run.next_runs[0].status() == "waiting"


async def test_a_group_that_has_called_back_does_not_again(client: Client, redis: Redis) -> None:
    group = await client.group([double.call(1)], then=done.call())
    for times in (1, 0):
        store, claim, ended = await ending(redis, group.runs[0].id)
        await store.ack_and_claim([ended], 0, [])
        claims = await claim_jobs(store, QUEUE, 5)
        assert len(claims) == times
        await store.ack_and_claim([Ack(one, None, 0) for one in claims], 0, [])
        await redis.set(keys.JOB + group.runs[0].id, claim.payload or b"")
        await redis.zadd(QUEUE, {group.runs[0].id: 1})


# --- groups


async def test_a_group_calls_back_once_with_the_results_in_their_order(fast: Settings, client: Client) -> None:
    members: list[Call[int]] = [double.call(number) for number in range(600)]
    group = await client.group(members, then=total.call(numbers=PREVIOUS_RESULT, name="sum "))
    assert group.callback is not None
    assert await group.progress() == (600, 0, False)
    async with working(fast, *ALL), working(fast, *ALL):
        assert await group.callback.result(timeout=60) == f"sum {sum(2 * n for n in range(600))}"
    assert await group.progress() == (600, 600, True)
    assert [call for call in calls if call[0] == "total"] == [("total", [2 * n for n in range(600)])]
    assert len(calls) == 601


async def test_members_may_be_chains_and_the_callback_may_be_followed(fast: Settings, client: Client) -> None:
    then = total.options(then=done.call()).call(numbers=PREVIOUS_RESULT)
    chain = double.options(then=add.call(number=PREVIOUS_RESULT, more=100)).call(1)
    group = await client.group([chain, add.call(1), chain], then=then)
    async with working(fast, *ALL):
        await until(lambda: _called(("done",)))
    assert ("total", [102, 2, 102]) in calls
    assert len({run.id for run in group.runs}) == 3


async def test_a_member_that_failed_keeps_the_callback_waiting_until_its_retry(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    fail["now"] = True
    group = await client.group([double.call(1), add.call(2)], then=total.call(numbers=PREVIOUS_RESULT))
    assert group.callback is not None
    async with working(fast, *ALL):
        with pytest.raises(JobFailed, match="not today"):
            await group.runs[0].result(timeout=60)
        with pytest.raises(JobFailed, match=f"not begun: double {group.id}:1"):
            await group.callback.result(timeout=60)
        await group.runs[1].result(timeout=60)
        assert await group.progress() == (2, 1, False)
        fail["now"] = False
        assert await retry_run(redis, Ledger(database, "north"), group.runs[0].id, from_start=False)
        await until(lambda: _called(("total", [2, 3])))
        assert await group.callback.result(timeout=60) == "5"


async def test_a_group_that_needs_ends_alone_calls_back_over_failures(fast: Settings, client: Client) -> None:
    fail["now"] = True
    chain = double.options(then=done.call()).call(7)
    then = total.options(delay=0.5).call(numbers=PREVIOUS_RESULT)
    group = await client.group([double.call(1), add.call(2), chain], then=then, complete_when="all_finished")
    async with working(fast, *ALL):
        assert group.callback is not None
        assert await group.callback.result(timeout=60) == "3"  # no error is reported before it begins
    assert ("total", [None, 3, None]) in calls
    assert ("done",) not in calls
    assert await group.progress() == (3, 3, True)


async def test_a_group_that_is_enqueued_again_with_its_id_enqueues_no_member_twice(
    fast: Settings, client: Client, redis: Redis
) -> None:
    brief = double.options()
    members = [brief.call(number) for number in range(3)]
    await client.group(members, then=done.call(), id="nightly")
    # The client died in its middle: the last member is not there. The first one has run, and is forgotten.
    store, _, ended = await ending(redis, "nightly:1")
    await store.ack_and_claim([ended], 0, [])
    for place in (2, 3):
        await redis.delete(keys.IN_PROGRESS + f"nightly:{place}", keys.RETRY + f"nightly:{place}")
        await redis.zadd(QUEUE, {f"nightly:{place}": 1})
    await redis.delete(keys.JOB + "nightly:3")
    await redis.zrem(QUEUE, "nightly:3")
    again = await client.group(members, then=done.call(), id="nightly")
    assert [run.is_new for run in again.runs] == [False, False, True]
    async with working(fast, *ALL):
        await until(lambda: _called(("done",)))
        assert sorted(calls) == [("done",), ("double", 1), ("double", 2)]
        await redis.delete(*[keys.RESULT + f"nightly:{place}" for place in (2, 3, "then")])
        once_more = await client.group(members, then=done.call(), id="nightly")
        assert [run.is_new for run in once_more.runs] == [False] * 3
    assert await once_more.progress() == (3, 3, True)


async def test_a_group_without_a_callback_says_how_far_it_is(fast: Settings, client: Client) -> None:
    group = await client.group([double.call(n) for n in range(4)])
    assert group.callback is None
    async with working(fast, *ALL):
        for run in group.runs:
            await run.result(timeout=60)
    assert await group.progress() == (4, 4, True)


async def test_members_go_where_their_options_say(client: Client, redis: Redis) -> None:
    other = double.options(queue="arq:other", priority=3)
    await client.group([double.call(1), other.call(2), other.call(3), double.call(4)], id="g")
    assert await redis.zrange(QUEUE, 0, -1) == [b"g:1", b"g:4"]
    assert await redis.zrange(keys.priority_line("arq:other", 3), 0, -1) == [b"g:2", b"g:3"]


async def test_groups_that_make_no_sense_are_refused(client: Client, redis: Redis) -> None:
    with pytest.raises(InvalidArguments, match="no members"):
        await client.group([])
    with pytest.raises(InvalidArguments, match="cannot have PREVIOUS_RESULT"):
        await client.group([add.call(number=PREVIOUS_RESULT)])
    with pytest.raises(InvalidArguments, match="cannot have expires="):
        await client.group([done.call()], then=done.options(expires=5).call())
    with pytest.raises(InvalidArguments, match="10,000 members at most"):
        await client.group([done.call()] * 10_001, then=total.call(numbers=PREVIOUS_RESULT))
    assert await redis.keys("*") == []
    with pytest.raises(InvalidArguments, match=r"group .* does not exist"):
        group = await client.group([done.call()])
        await redis.flushall()
        await group.progress()


async def test_runs_of_a_killed_worker_call_back_once(settings: Settings, client: Client, redis: Redis) -> None:
    """Leases end, scripts are repeated, members run again: the callback is enqueued once."""
    group = await client.group([double.call(n) for n in range(20)], then=total.call(numbers=PREVIOUS_RESULT))
    assert group.callback is not None
    stores = [QueueStore(redis, owner) for owner in ("north", "south")]
    called = 0
    late: list[Ack] = []
    for step in range(200):
        store = stores[step % 2]
        turned = await store.ack_and_claim(late if step % 3 else [], 3, [(QUEUE, 3)])
        for claim in turned.claims:
            assert claim.payload is not None
            if claim.run_id == group.callback.id:
                called += 1
                continue
            payload = decode_payload(claim.payload, accept_pickle=False)
            next_ = make_follow_up(payload, run_id=claim.run_id, queue=QUEUE, success=True, result=str(claim.attempt))
            if step % 4 == 0:  # this worker dies, and its lease ends
                await redis.delete(keys.IN_PROGRESS + claim.run_id)
                await redis.zadd(QUEUE, {claim.run_id: 1})
            else:
                late.append(Ack(claim, None, 0, next_))
    assert called == 1
    assert (await group.progress()).called
