"""cancel.lua: stores a cancel command for a job in the queue, and for no other."""

from __future__ import annotations

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker.queue import keys

LEASE = keys.IN_PROGRESS + "r"


async def cancel(scripts: Scripts) -> int:
    return int(await scripts.run("cancel", [QUEUE, keys.CANCELLED, LEASE], "r"))


async def test_one_that_waits_is_ordered_to_end_and_keeps_its_place(scripts: Scripts) -> None:
    await scripts.redis.zadd(QUEUE, {"r": NOW - 1})
    assert await cancel(scripts) == 1
    assert await scripts.redis.smembers(keys.CANCELLED) == {b"r"}
    assert await scripts.due("r") == NOW - 1


async def test_a_deferred_one_is_due_now(scripts: Scripts) -> None:
    await scripts.redis.zadd(QUEUE, {"r": NOW + 86_400_000})
    assert await cancel(scripts) == 1
    assert await scripts.due("r") == NOW


async def test_one_that_runs_stays_due_when_its_lease_ends(scripts: Scripts) -> None:
    await scripts.redis.zadd(QUEUE, {"r": NOW + 10_000})
    await scripts.redis.set(LEASE, "north")
    assert await cancel(scripts) == 1
    assert await scripts.redis.smembers(keys.CANCELLED) == {b"r"}
    assert await scripts.due("r") == NOW + 10_000


async def test_an_order_for_an_unknown_id_does_not_stay(scripts: Scripts) -> None:
    """It would end the next run of that id."""
    await scripts.redis.zadd(QUEUE, {"another": 1})
    before = await scripts.everything()
    assert await cancel(scripts) == 0
    assert await scripts.everything() == before
