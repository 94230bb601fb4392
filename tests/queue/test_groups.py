"""Groups: members, the callback, and what is refused."""

from __future__ import annotations

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
    total,
)
from tests.support.claims import claim_jobs
from tests.support.waiting import until
from tests.support.workers import working
from worker import (
    PREVIOUS_RESULT,
    Client,
    InvalidArguments,
    JobFailed,
    Settings,
)
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.chain import make_follow_up
from worker.queue.claims import Ack
from worker.queue.commands import retry_run
from worker.queue.payload import decode_payload
from worker.queue.store import QueueStore
from worker.types import Call

pytestmark = pytest.mark.usefixtures("database")


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
        assert await group.callback.result(timeout=120) == f"sum {sum(2 * n for n in range(600))}"
    assert await group.progress() == (600, 600, True)
    assert [call for call in calls if call[0] == "total"] == [("total", [2 * n for n in range(600)])]
    assert len(calls) == 601


async def test_members_may_be_chains_and_the_callback_may_be_followed(fast: Settings, client: Client) -> None:
    then = total.options(then=done.call()).call(numbers=PREVIOUS_RESULT)
    chain = double.options(then=add.call(number=PREVIOUS_RESULT, more=100)).call(1)
    group = await client.group([chain, add.call(1), chain], then=then)
    async with working(fast, *ALL):
        await until(lambda: called(("done",)))
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
            await group.runs[0].result(timeout=120)
        with pytest.raises(JobFailed, match=f"not begun: double {group.id}:1"):
            await group.callback.result(timeout=120)
        await group.runs[1].result(timeout=120)
        assert await group.progress() == (2, 1, False)
        fail["now"] = False
        assert await retry_run(redis, Ledger(database, "north"), group.runs[0].id, from_start=False)
        await until(lambda: called(("total", [2, 3])))
        assert await group.callback.result(timeout=120) == "5"


async def test_a_group_that_needs_ends_alone_calls_back_over_failures(fast: Settings, client: Client) -> None:
    fail["now"] = True
    chain = double.options(then=done.call()).call(7)
    then = total.options(delay=0.5).call(numbers=PREVIOUS_RESULT)
    group = await client.group([double.call(1), add.call(2), chain], then=then, complete_when="all_finished")
    async with working(fast, *ALL):
        assert group.callback is not None
        assert await group.callback.result(timeout=120) == "3"  # no error is reported before it begins
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
        await until(lambda: called(("done",)))
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
            await run.result(timeout=120)
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
