"""ack_and_claim.lua: acknowledges ended jobs, and claims due ones, in order and within limits."""

from __future__ import annotations

import asyncio

import pytest

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts, StandingStore
from worker.queue import keys
from worker.queue.claims import Ack, Claim, FetchResult

LEASE_MS = 60_000
#: When a job that runs is due again: no other one is due at half a millisecond.
AGAIN = NOW + LEASE_MS + 0.5
SLOW = "arq:slow"


async def put(scripts: Scripts, *run_ids: str, due: int = 1, queue: str = QUEUE, level: int = 0) -> None:
    """Let jobs wait, one millisecond after the other from `due` on."""
    for place, run_id in enumerate(run_ids):
        await scripts.redis.set(keys.JOB + run_id, f"payload of {run_id}")
        await scripts.redis.zadd(queue, {run_id: due + place})
        if level:
            await scripts.redis.zadd(keys.priority_line(queue, level), {run_id: due + place})
            await scripts.redis.zadd(keys.PRIORITIES + queue, {str(level): level})


async def take(scripts: Scripts, slots: int = 10, *shares: tuple[str, int]) -> FetchResult:
    return await scripts.store.ack_and_claim((), slots, shares or [(QUEUE, slots)])


async def end(scripts: Scripts, run_id: str, *, keep_ms: int = 5_000, result: bytes | None = b"{}") -> FetchResult:
    return await scripts.store.ack_and_claim([Ack(Claim(run_id, QUEUE, 0, b"", 1), result, keep_ms)], 0, [])


def ids(turned: FetchResult) -> list[str]:
    return [claim.run_id for claim in turned.claims]


# --- ended jobs


async def test_nothing_is_left_of_what_has_ended_but_its_result_for_its_time(scripts: Scripts) -> None:
    await put(scripts, "r")
    await take(scripts)
    turned = await end(scripts, "r")
    assert (turned.refused, turned.claims, turned.ordered) == (frozenset(), [], False)
    assert await scripts.redis.keys("*") == [b"arq:result:r"]
    assert await scripts.redis.get(keys.RESULT + "r") == b"{}"
    assert 0 < await scripts.redis.pttl(keys.RESULT + "r") <= 5_000


async def test_a_result_for_ever_and_one_for_no_time_and_none(scripts: Scripts) -> None:
    for run_id in "abc":
        await put(scripts, run_id)
    await take(scripts)
    await end(scripts, "a", keep_ms=-1)
    await end(scripts, "b", keep_ms=0)
    await end(scripts, "c", result=None)
    assert await scripts.redis.keys("*") == [b"arq:result:a"]
    assert await scripts.redis.pttl(keys.RESULT + "a") == -1


async def test_what_another_worker_has_by_now_is_refused_and_stays_his(scripts: Scripts) -> None:
    await put(scripts, "r")
    await StandingStore(scripts.redis, "south").ack_and_claim((), 1, [(QUEUE, 1)])
    before = await scripts.everything()
    assert (await end(scripts, "r")).refused == {"r"}
    assert await scripts.everything() == before


async def test_a_lease_that_expired_and_that_nobody_took_counts_as_held(scripts: Scripts) -> None:
    await put(scripts, "r")
    await take(scripts)
    await scripts.redis.delete(keys.IN_PROGRESS + "r")
    assert (await end(scripts, "r")).refused == frozenset()
    assert await scripts.redis.keys("*") == [b"arq:result:r"]


async def test_an_end_may_be_told_twice(scripts: Scripts) -> None:
    """The answer to the first call was lost."""
    await put(scripts, "r")
    await take(scripts)
    await end(scripts, "r")
    assert (await end(scripts, "r")).refused == frozenset()
    assert await scripts.redis.keys("*") == [b"arq:result:r"]


async def test_several_end_at_once_each_in_its_queue_and_the_turn_still_takes(scripts: Scripts) -> None:
    await put(scripts, "a")
    await put(scripts, "b", queue=SLOW)
    claims = (await take(scripts, 10, (QUEUE, 10), (SLOW, 10))).claims
    await put(scripts, "next")
    turned = await scripts.store.ack_and_claim([Ack(claim, b"{}", 5_000) for claim in claims], 1, [(QUEUE, 1)])
    assert ids(turned) == ["next"]
    assert await scripts.redis.zcard(SLOW) == 0
    assert await scripts.redis.zrange(QUEUE, 0, -1) == [b"next"]


async def test_orders_for_a_job_are_done_with_when_it_ends_and_those_for_others_stay(scripts: Scripts) -> None:
    await put(scripts, "r")
    await take(scripts)
    for order in (keys.CANCELLED, keys.PAUSED):
        await scripts.redis.sadd(order, "r", "another")
    await scripts.redis.zadd(keys.ABORT, {"r": 1, "another": 1})
    await scripts.redis.hset(keys.PACE, mapping={"r": 1, "another": 1})
    assert (await end(scripts, "r")).ordered
    assert await scripts.redis.smembers(keys.CANCELLED) == await scripts.redis.smembers(keys.PAUSED) == {b"another"}
    assert await scripts.redis.zrange(keys.ABORT, 0, -1) == [b"another"]
    assert await scripts.redis.hkeys(keys.PACE) == [b"another"]


@pytest.mark.parametrize("order", [keys.CANCELLED, keys.PAUSED, keys.ABORT, keys.PACE])
async def test_a_turn_tells_whether_there_are_orders(scripts: Scripts, order: str) -> None:
    assert not (await take(scripts)).ordered
    if order == keys.ABORT:
        await scripts.redis.zadd(order, {"r": 1})
    elif order == keys.PACE:
        await scripts.redis.hset(order, "r", 1)
    else:
        await scripts.redis.sadd(order, "r")
    assert (await take(scripts)).ordered
    assert (await take(scripts, 0)).ordered


# --- due jobs


async def test_what_is_due_longest_is_claimed_first_up_to_the_free_slots(scripts: Scripts) -> None:
    await put(scripts, "b", due=2)
    await put(scripts, "c", due=3)
    await put(scripts, "a", due=1)
    turned = await take(scripts, 2)
    assert turned.claims == [
        Claim("a", QUEUE, 1, b"payload of a", 1, number=1),
        Claim("b", QUEUE, 2, b"payload of b", 1, number=2),
    ]
    assert [await scripts.due(run_id) for run_id in "abc"] == [AGAIN, AGAIN, 3]
    assert await scripts.redis.get(keys.IN_PROGRESS + "a") == b"north"
    assert LEASE_MS - 5_000 < await scripts.redis.pttl(keys.IN_PROGRESS + "a") <= LEASE_MS
    assert await scripts.redis.exists(keys.IN_PROGRESS + "c") == 0


async def test_without_a_slot_nothing_is_claimed(scripts: Scripts) -> None:
    await put(scripts, "r")
    before = await scripts.everything()
    assert (await take(scripts, 0, (QUEUE, 1))).claims == []
    assert await scripts.everything() == before


async def test_a_job_is_due_at_its_millisecond_and_not_before(scripts: Scripts) -> None:
    await put(scripts, "now", due=NOW)
    await put(scripts, "later", due=NOW + 1)
    assert ids(await take(scripts)) == ["now"]


async def test_a_claim_is_counted(scripts: Scripts) -> None:
    await put(scripts, "r")
    await scripts.redis.set(keys.RETRY + "r", 2)
    assert (await take(scripts)).claims[0].attempt == 3
    assert await scripts.redis.get(keys.RETRY + "r") == b"3"


async def test_a_job_without_a_payload_is_claimed_and_says_so(scripts: Scripts) -> None:
    await scripts.redis.zadd(QUEUE, {"r": 1})
    assert (await take(scripts)).claims == [Claim("r", QUEUE, 1, None, 1, number=1)]


async def test_a_due_job_that_somebody_has_is_passed_over(scripts: Scripts) -> None:
    """A worker of stock arq keeps running jobs due: here the first five of eight."""
    await put(scripts, *"abcdefgh")
    for run_id in "abcde":
        await scripts.redis.set(keys.IN_PROGRESS + run_id, "arq's")
    assert ids(await take(scripts, 2)) == ["f", "g"]
    assert [await scripts.due(run_id) for run_id in "ab"] == [1, 2]
    assert ids(await take(scripts, 2)) == ["h"]


async def test_who_claims_one_whose_lease_has_expired_knows_it(scripts: Scripts) -> None:
    await put(scripts, "r")
    await put(scripts, "put back", due=2)
    await scripts.redis.mset({keys.RETRY + "r": 1, keys.RETRY + "put back": 1})
    await scripts.redis.zadd(QUEUE, {"r": 1.5})
    assert [(claim.run_id, claim.expired) for claim in (await take(scripts)).claims] == [
        ("r", True),
        ("put back", False),
    ]


async def test_of_workers_that_come_together_each_job_has_one(scripts: Scripts) -> None:
    await put(scripts, *(f"r{n}" for n in range(40)))
    stores = [StandingStore(scripts.redis, owner) for owner in ("north", "south", "east", "west")]
    turns = await asyncio.gather(*(store.ack_and_claim((), 5, [(QUEUE, 5)]) for store in stores * 3))
    taken = [run_id for turned in turns for run_id in ids(turned)]
    assert sorted(taken) == sorted(f"r{n}" for n in range(40))


@pytest.mark.parametrize("keep", [False, True])
async def test_a_payload_loses_its_expiry_unless_the_worker_keeps_arqs_rule(scripts: Scripts, keep: bool) -> None:
    await put(scripts, "r")
    await scripts.redis.pexpire(keys.JOB + "r", 50_000)
    scripts.store.claims._keep_expiry = keep
    assert (await take(scripts)).claims[0].payload == b"payload of r"
    assert (await scripts.redis.pttl(keys.JOB + "r") > 0) == keep


async def test_each_queue_gives_its_share_in_their_order_and_one_can_come_again(scripts: Scripts) -> None:
    await put(scripts, *"abcdef")
    await put(scripts, *"stuv", queue=SLOW)
    assert ids(await take(scripts, 10, (SLOW, 1), (QUEUE, 2), (SLOW, 2))) == ["s", "a", "b", "t", "u"]
    assert ids(await take(scripts, 3, (QUEUE, 2), (SLOW, 5))) == ["c", "d", "v"]


async def test_the_shares_together_are_no_more_than_the_slots(scripts: Scripts) -> None:
    await put(scripts, *"ab")
    await put(scripts, *"st", queue=SLOW)
    assert ids(await take(scripts, 3, (QUEUE, 3), (SLOW, 3))) == ["a", "b", "s"]


# --- what goes first


async def test_a_higher_level_goes_first_and_within_one_what_is_due_longest(scripts: Scripts) -> None:
    await put(scripts, "plain", due=1)
    await put(scripts, "low-b", "low-c", due=10, level=2)
    await put(scripts, "low-a", due=5, level=2)
    await put(scripts, "high", due=100, level=10)
    assert ids(await take(scripts, 4)) == ["high", "low-a", "low-b", "low-c"]
    assert ids(await take(scripts)) == ["plain"]
    for run_id, level in {"high": 10, "low-a": 2}.items():
        assert await scripts.due(run_id) == await scripts.due(run_id, keys.priority_line(QUEUE, level)) == AGAIN


async def test_a_line_that_knows_more_than_the_queue_is_mended(scripts: Scripts) -> None:
    line = keys.priority_line(QUEUE, 3)
    await put(scripts, "later", "r", level=3)
    await scripts.redis.zadd(QUEUE, {"later": NOW + 5_000})  # a client of stock arq has put it off
    await scripts.redis.zadd(line, {"gone": 1})
    assert ids(await take(scripts)) == ["r"]
    assert await scripts.redis.zrange(line, 0, -1, withscores=True) == [(b"later", NOW + 5_000), (b"r", AGAIN)]


async def test_one_of_a_line_that_somebody_has_is_passed_over(scripts: Scripts) -> None:
    await put(scripts, *"abcd", level=3)
    for run_id in "ab":
        await scripts.redis.set(keys.IN_PROGRESS + run_id, "arq's")
    assert ids(await take(scripts, 1)) == ["c"]
    assert ids(await take(scripts, 5)) == ["d"]


async def test_what_ends_leaves_its_line_and_a_level_without_jobs_is_forgotten(scripts: Scripts) -> None:
    await put(scripts, "r", level=3)
    await take(scripts)
    await end(scripts, "r", keep_ms=0)
    await take(scripts)
    assert await scripts.redis.keys("*") == []


# --- limits of queues


async def test_no_more_of_a_queue_run_than_its_limit_over_all_workers(scripts: Scripts) -> None:
    await put(scripts, *"abcde")
    await put(scripts, "s", queue=SLOW)
    south = StandingStore(scripts.redis, "south")
    scripts.store.claims._queue_limits = south.claims._queue_limits = {QUEUE: 3}
    assert ids(await south.ack_and_claim((), 2, [(QUEUE, 2)])) == ["a", "b"]
    assert ids(await take(scripts, 10, (SLOW, 10), (QUEUE, 10))) == ["s", "c"]
    assert sorted(await scripts.redis.zrange(keys.RUNNING + QUEUE, 0, -1)) == [b"a", b"b", b"c"]
    assert 0 < await scripts.redis.pttl(keys.RUNNING + QUEUE) <= 604_800_000
    await end(scripts, "c")
    assert sorted(await scripts.redis.zrange(keys.RUNNING + QUEUE, 0, -1)) == [b"a", b"b"]
    assert ids(await take(scripts)) == ["d"]


async def test_the_place_of_one_whose_lease_is_gone_is_free(scripts: Scripts) -> None:
    await put(scripts, *"abc")
    scripts.store.claims._queue_limits = {QUEUE: 2}
    await take(scripts)
    await scripts.redis.delete(keys.IN_PROGRESS + "a")
    assert ids(await take(scripts)) == ["c"]
    assert sorted(await scripts.redis.zrange(keys.RUNNING + QUEUE, 0, -1)) == [b"b", b"c"]


async def test_an_order_says_another_limit_and_what_is_no_number_says_none(scripts: Scripts) -> None:
    await put(scripts, *"abcd")
    scripts.store.claims._queue_limits = {QUEUE: 1}
    await scripts.redis.hset(keys.LIMITS, QUEUE, "3")
    assert ids(await take(scripts)) == ["a", "b", "c"]
    await scripts.redis.hset(keys.LIMITS, QUEUE, "many")
    assert ids(await take(scripts)) == []


async def test_a_queue_without_a_limit_counts_nobody(scripts: Scripts) -> None:
    await put(scripts, "r")
    await take(scripts)
    assert await scripts.redis.exists(keys.RUNNING + QUEUE) == 0


async def test_a_limit_holds_for_the_lines_of_a_queue_and_the_rest_together(scripts: Scripts) -> None:
    await put(scripts, "high", level=5)
    await put(scripts, "a", "b")
    scripts.store.claims._queue_limits = {QUEUE: 2}
    assert ids(await take(scripts)) == ["high", "a"]


async def test_what_another_worker_has_taken_and_ended_is_not_ended_again(scripts: Scripts) -> None:
    await put(scripts, "r", due=1)
    [claim] = (await take(scripts, 1)).claims
    await scripts.redis.delete(keys.IN_PROGRESS + "r")  # our lease has run out
    await scripts.redis.zrem(QUEUE, "r")
    await scripts.redis.set(keys.RESULT + "r", "his")
    turned = await scripts.store.ack_and_claim([Ack(claim, b"ours", 60_000)], 0, [])
    assert turned.refused == {"r"}
    assert await scripts.redis.get(keys.RESULT + "r") == b"his"
