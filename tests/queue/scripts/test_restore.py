"""restore.lua: puts a running job back into a Redis that lost it."""

from __future__ import annotations

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts, StandingStore
from worker.queue import keys
from worker.queue.claims import Claim

LEASE_MS = 60_000
LEASE, PAYLOAD = keys.IN_PROGRESS + "r", keys.JOB + "r"


async def restore(scripts: Scripts, owner: str = "north") -> bool:
    return await StandingStore(scripts.redis, owner).restore(Claim("r", QUEUE, 0, b"mine", 1))


async def test_an_empty_redis_has_job_lease_and_payload_again(scripts: Scripts) -> None:
    assert await restore(scripts)
    assert await scripts.due("r") == NOW + LEASE_MS + 0.5  # as that of a job that runs
    assert await scripts.redis.mget(LEASE, PAYLOAD) == [b"north", b"mine"]
    assert LEASE_MS - 5_000 < await scripts.redis.pttl(LEASE) <= LEASE_MS


async def test_what_another_worker_has_by_now_is_his(scripts: Scripts) -> None:
    await scripts.redis.set(LEASE, "south", px=1_000)
    before = await scripts.everything()
    assert not await restore(scripts)
    assert await scripts.everything() == before


async def test_of_two_workers_that_have_lost_it_the_first_has_it(scripts: Scripts) -> None:
    assert await restore(scripts, "south")
    assert not await restore(scripts, "north")
    assert await scripts.redis.get(LEASE) == b"south"


async def test_it_may_be_said_twice(scripts: Scripts) -> None:
    """The answer to the first call was lost."""
    await restore(scripts)
    assert await restore(scripts)


async def test_a_payload_that_is_there_is_newer(scripts: Scripts) -> None:
    await scripts.redis.set(PAYLOAD, "newer")
    await restore(scripts)
    assert await scripts.redis.get(PAYLOAD) == b"newer"
