"""renew.lua: which leases are kept, and which jobs are lost or gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker.queue import keys

LEASE_MS = 60_000
AGAIN = NOW + LEASE_MS + 0.5
#: Of a job that runs.
DUE = 5_000.5


async def renew(scripts: Scripts, *jobs: tuple[str, int], queues: tuple[str, ...] = (QUEUE,)) -> list[Any]:
    """Renew for `north`; each job is its id, and the place of its queue."""
    flat = [value for job in jobs for value in job]
    return await scripts.run("renew", list(queues), "north", LEASE_MS, keys.IN_PROGRESS, keys.RESULT, *flat)


async def hold(scripts: Scripts, run_id: str, owner: str = "north", queue: str = QUEUE) -> None:
    await scripts.redis.set(keys.IN_PROGRESS + run_id, owner, px=1_000)
    await scripts.redis.zadd(queue, {run_id: DUE})


async def test_a_lease_of_ours_lives_on_and_its_job_is_due_when_it_ends(scripts: Scripts) -> None:
    await hold(scripts, "r")
    assert await renew(scripts, ("r", 1)) == [b"held"]
    assert await scripts.due("r") == AGAIN
    assert LEASE_MS - 5_000 < await scripts.redis.pttl(keys.IN_PROGRESS + "r") <= LEASE_MS


async def test_a_lease_of_ours_does_not_bring_a_job_back_that_left_the_queue(scripts: Scripts) -> None:
    await scripts.redis.set(keys.IN_PROGRESS + "r", "north", px=1_000)
    assert await renew(scripts, ("r", 1)) == [b"held"]
    assert await scripts.due("r") is None


async def test_what_another_worker_has_is_lost_and_stays_his(scripts: Scripts) -> None:
    await hold(scripts, "r", owner="south")
    before = await scripts.everything()
    assert await renew(scripts, ("r", 1)) == [b"lost"]
    assert await scripts.everything() == before
    assert await scripts.redis.pttl(keys.IN_PROGRESS + "r") <= 1_000


@pytest.mark.parametrize("due", [DUE, NOW + 1_000.5])
async def test_an_expired_lease_that_nobody_took_is_taken_back(scripts: Scripts, due: float) -> None:
    """The lease is kept even if its time differs from the worker's, as on a replica that has become the primary."""
    await scripts.redis.zadd(QUEUE, {"r": due})
    assert await renew(scripts, ("r", 1)) == [b"held"]
    assert await scripts.redis.get(keys.IN_PROGRESS + "r") == b"north"
    assert LEASE_MS - 5_000 < await scripts.redis.pttl(keys.IN_PROGRESS + "r") <= LEASE_MS
    assert await scripts.due("r") == AGAIN


@pytest.mark.parametrize("put_back_for", [4_000, 5_000, 6_000])
async def test_what_a_requeue_put_back_before_this_call_came_is_for_whoever_comes(
    scripts: Scripts, put_back_for: float
) -> None:
    await scripts.redis.zadd(QUEUE, {"r": put_back_for})
    assert await renew(scripts, ("r", 1)) == [b"lost"]
    assert await scripts.redis.exists(keys.IN_PROGRESS + "r") == 0
    assert await scripts.due("r") == put_back_for


async def test_what_has_a_result_was_ended_by_another_one(scripts: Scripts) -> None:
    await scripts.redis.set(keys.RESULT + "r", "{}")
    await scripts.redis.zadd(QUEUE, {"r": DUE})
    assert await renew(scripts, ("r", 1)) == [b"lost"]
    assert await scripts.redis.exists(keys.IN_PROGRESS + "r") == 0


async def test_what_neither_queue_nor_results_know_is_gone(scripts: Scripts) -> None:
    assert await renew(scripts, ("r", 1)) == [b"gone"]
    assert await scripts.everything() == {}


async def test_the_answers_come_in_the_order_of_the_jobs_each_in_its_own_queue(scripts: Scripts) -> None:
    await hold(scripts, "a", queue="slow")
    await hold(scripts, "b", owner="south", queue="quick")
    await hold(scripts, "d", queue="quick")
    told = await renew(scripts, ("a", 2), ("b", 1), ("c", 1), ("d", 1), queues=("quick", "slow"))
    assert told == [b"held", b"lost", b"gone", b"held"]
    assert [await scripts.due("a", "slow"), await scripts.due("a", "quick")] == [AGAIN, None]
    assert [await scripts.due("d", "slow"), await scripts.due("d", "quick")] == [None, AGAIN]
