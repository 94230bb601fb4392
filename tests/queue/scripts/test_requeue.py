"""requeue.lua: only the owner of a job can return it to the queue."""

from __future__ import annotations

import pytest

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker.queue import keys
from worker.queue.claims import Claim

LEASE, PAYLOAD, TRY = keys.IN_PROGRESS + "r", keys.JOB + "r", keys.RETRY + "r"


async def requeue(scripts: Scripts, *, delay: int = 0, uncounted: bool = False, payload: str = "") -> int:
    """Put `r` back, for `north`; the delay is in ms."""
    claim = Claim("r", QUEUE, 0, payload.encode(), 1)
    return int(await scripts.store.requeue(claim, delay=delay / 1000, counts=not uncounted))


async def claimed(scripts: Scripts, tries: int = 1, owner: str = "north") -> None:
    await scripts.redis.zadd(QUEUE, {"r": NOW + 10_000.5})
    await scripts.redis.mset({LEASE: owner, PAYLOAD: "first", TRY: tries})


async def test_it_is_due_after_the_delay_and_nobody_has_it(scripts: Scripts) -> None:
    await claimed(scripts)
    assert await requeue(scripts, delay=250) == 1
    assert await scripts.due("r") == NOW + 250
    assert await scripts.redis.mget(LEASE, PAYLOAD, TRY) == [None, b"first", b"1"]


async def test_what_another_worker_has_stays_as_it_is(scripts: Scripts) -> None:
    await claimed(scripts, tries=2, owner="south")
    before = await scripts.everything()
    assert await requeue(scripts, uncounted=True, payload="second") == 0
    assert await scripts.everything() == before


async def test_a_lease_that_expired_is_no_hindrance(scripts: Scripts) -> None:
    await claimed(scripts)
    await scripts.redis.delete(LEASE)
    assert await requeue(scripts) == 1
    assert await scripts.due("r") == NOW


async def test_a_redis_that_lost_everything_has_the_job_again(scripts: Scripts) -> None:
    assert await requeue(scripts, payload="second", uncounted=True) == 1
    assert await scripts.due("r") == NOW
    assert await scripts.redis.mget(LEASE, PAYLOAD, TRY) == [None, b"second", None]


async def test_its_payload_is_the_one_that_its_worker_gives(scripts: Scripts) -> None:
    await claimed(scripts)
    await requeue(scripts, payload="second")
    assert await scripts.redis.get(PAYLOAD) == b"second"


@pytest.mark.parametrize(("tries", "left"), [(3, b"2"), (2, b"1"), (1, None), (0, None)])
async def test_a_claim_that_does_not_count_is_taken_back(scripts: Scripts, tries: int, left: bytes | None) -> None:
    await claimed(scripts, tries=tries)
    await requeue(scripts, uncounted=True)
    assert await scripts.redis.get(TRY) == left


async def test_a_claim_that_counts_stays(scripts: Scripts) -> None:
    await claimed(scripts, tries=3)
    await requeue(scripts)
    assert await scripts.redis.get(TRY) == b"3"


async def test_its_due_time_is_none_of_a_job_that_runs(scripts: Scripts) -> None:
    """A renewal in flight would otherwise take it back (renew.lua)."""
    await claimed(scripts)
    await requeue(scripts, delay=10_000)
    assert await scripts.due("r") == NOW + 10_000
    assert await scripts.run("renew", [QUEUE], "north", 60_000, keys.IN_PROGRESS, keys.RESULT, "r", 1) == [b"lost"]


async def test_what_another_worker_has_taken_and_ended_is_not_put_back(scripts: Scripts) -> None:
    await scripts.redis.set(keys.RESULT + "r", "{}")
    before = await scripts.everything()
    assert await requeue(scripts, payload="second") == 0
    assert await scripts.everything() == before


async def test_a_result_of_an_earlier_run_does_not_keep_its_owner_from_it(scripts: Scripts) -> None:
    await claimed(scripts)
    await scripts.redis.set(keys.RESULT + "r", "{}")
    assert await requeue(scripts) == 1


async def test_it_keeps_its_place_in_a_line_of_priority_by_its_new_due_time(scripts: Scripts) -> None:
    await claimed(scripts)
    await scripts.redis.zadd(keys.PRIORITIES + QUEUE, {"3": 3, "5": 5})
    await scripts.redis.zadd(keys.priority_line(QUEUE, 3), {"r": 1})
    await scripts.redis.zadd(keys.priority_line(QUEUE, 5), {"another": 1})
    await requeue(scripts, delay=250)
    assert await scripts.due("r", keys.priority_line(QUEUE, 3)) == NOW + 250
    assert await scripts.due("r", keys.priority_line(QUEUE, 5)) is None


@pytest.mark.parametrize("is_in_line", [True, False])
async def test_run_whose_place_became_free_meanwhile_is_due_at_once(scripts: Scripts, is_in_line: bool) -> None:
    """Between the refusal of a place and the requeue, a place was released, and the run left the line for it."""
    line = keys.HELD + "narrow"
    await scripts.redis.zadd(line, {"r" if is_in_line else "another": 1})
    assert await scripts.store.requeue(Claim("r", QUEUE, 0, b"", 1), delay=50.0, counts=False, line=line)
    assert await scripts.due("r") == (NOW + 50_000 if is_in_line else NOW)
