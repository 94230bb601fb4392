"""enqueue.lua: once for each id and each lock, or in place of the waiting job."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker.queue import keys
from worker.queue.store import Enqueued, Lock

MARK = keys.UNIQUE + "job:mark"
PUT = Enqueued("r", is_new=True, replaced=False)
KNOWN = Enqueued("r", is_new=False, replaced=False)


async def enqueue(scripts: Scripts, run_id: str = "r", payload: str = "first", **options: Any) -> Enqueued:
    return await scripts.store.enqueue(run_id, payload, queue=QUEUE, **options)


def lock(counts: str) -> Lock:
    return Lock("job:mark", counts, 50_000)


async def end(scripts: Scripts, run_id: str) -> None:
    """End a run, and expire its result."""
    await scripts.redis.delete(keys.JOB + run_id, keys.IN_PROGRESS + run_id)
    await scripts.redis.zrem(QUEUE, run_id)


async def test_a_new_one_is_due_now(scripts: Scripts) -> None:
    assert await enqueue(scripts) == PUT
    assert await scripts.due("r") == NOW
    assert await scripts.redis.get(keys.JOB + "r") == b"first"
    assert sorted(await scripts.redis.keys("*")) == [b"arq:job:r", b"arq:queue"]


async def test_a_delay_counts_from_now_and_a_time_is_one(scripts: Scripts) -> None:
    await enqueue(scripts, "delayed", delay=2.5)
    await enqueue(scripts, "timed", at=datetime.fromtimestamp(1_900_000_000.5, UTC))
    assert await scripts.due("delayed") == NOW + 2_500
    assert await scripts.due("timed") == 1_900_000_000_500


@pytest.mark.parametrize("known_by", [keys.JOB, keys.RESULT])
async def test_one_that_waits_runs_or_has_a_result_is_known(scripts: Scripts, known_by: str) -> None:
    await scripts.redis.set(known_by + "r", "before")
    await scripts.redis.sadd(keys.CANCELLED, "r")
    before = await scripts.everything()
    assert await enqueue(scripts) == KNOWN
    assert await scripts.everything() == before


async def test_of_many_that_come_together_one_is_put_there(scripts: Scripts) -> None:
    answers = await asyncio.gather(*(enqueue(scripts) for _ in range(10)))
    assert sum(answer.is_new for answer in answers) == 1


async def test_an_order_that_is_left_of_an_earlier_run_is_not_for_this_one(scripts: Scripts) -> None:
    await scripts.redis.sadd(keys.CANCELLED, "r", "another")
    await enqueue(scripts)
    assert await scripts.redis.smembers(keys.CANCELLED) == {b"another"}


# --- in the place of another one


async def test_it_takes_the_place_of_the_one_that_waits(scripts: Scripts) -> None:
    await enqueue(scripts)
    assert await enqueue(scripts, payload="second", delay=9, replace=True) == Enqueued("r", False, True)
    assert await scripts.redis.get(keys.JOB + "r") == b"second"
    assert await scripts.due("r") == NOW + 9_000


async def test_one_that_runs_is_not_replaced(scripts: Scripts) -> None:
    await enqueue(scripts)
    await scripts.redis.set(keys.IN_PROGRESS + "r", "north")
    before = await scripts.everything()
    assert await enqueue(scripts, payload="second", delay=9, replace=True) == KNOWN
    assert await scripts.everything() == before


async def test_one_that_has_ended_is_not_replaced(scripts: Scripts) -> None:
    await scripts.redis.set(keys.RESULT + "r", "{}")
    assert await enqueue(scripts, replace=True) == KNOWN
    assert await scripts.redis.keys("*") == [b"arq:result:r"]


async def test_where_there_is_none_to_replace_it_is_a_new_one(scripts: Scripts) -> None:
    assert await enqueue(scripts, replace=True) == PUT


# --- locks


async def test_a_lock_has_the_id_and_its_life(scripts: Scripts) -> None:
    await enqueue(scripts, lock=lock("active"))
    assert await scripts.redis.get(MARK) == b"r"
    assert 40_000 < await scripts.redis.pttl(MARK) <= 50_000


@pytest.mark.parametrize(
    ("counts", "of_what_waits", "of_what_runs", "of_what_is_gone"),
    [("time", False, False, False), ("active", False, False, True), ("waiting", False, True, True)],
)
async def test_a_lock_counts_as_it_says(
    scripts: Scripts, counts: str, of_what_waits: bool, of_what_runs: bool, of_what_is_gone: bool
) -> None:
    async def second_is_let_in() -> bool:
        answer = await enqueue(scripts, "s", "second", lock=lock(counts))
        assert answer == (Enqueued("s", True, False) if answer.is_new else KNOWN)
        assert await scripts.redis.get(MARK) == (b"s" if answer.is_new else b"r")
        assert await scripts.redis.exists(keys.JOB + "s") == answer.is_new
        await end(scripts, "s")
        await scripts.redis.set(MARK, "r")
        return answer.is_new

    await enqueue(scripts, lock=lock(counts))
    assert await second_is_let_in() == of_what_waits
    await scripts.redis.set(keys.IN_PROGRESS + "r", "north")
    assert await second_is_let_in() == of_what_runs
    await end(scripts, "r")
    assert await second_is_let_in() == of_what_is_gone


async def test_a_lock_of_its_own_does_not_keep_it_out(scripts: Scripts) -> None:
    await scripts.redis.set(MARK, "r")
    assert await enqueue(scripts, lock=lock("time")) == PUT


async def test_one_that_is_known_by_its_id_leaves_the_lock_alone(scripts: Scripts) -> None:
    await scripts.redis.set(keys.RESULT + "r", "{}")
    assert await enqueue(scripts, lock=lock("active")) == KNOWN
    assert await scripts.redis.exists(MARK) == 0


async def test_it_takes_the_place_of_the_one_that_has_the_lock(scripts: Scripts) -> None:
    await enqueue(scripts, lock=lock("active"))
    answer = await enqueue(scripts, "s", "second", lock=lock("active"), replace=True, delay=1)
    assert answer == Enqueued("r", False, True)
    assert await scripts.redis.mget(keys.JOB + "r", keys.JOB + "s") == [b"second", None]
    assert (await scripts.due("r"), await scripts.due("s")) == (NOW + 1_000, None)


# --- priorities


async def test_it_stands_in_the_line_of_its_level(scripts: Scripts) -> None:
    await enqueue(scripts, priority=-2, delay=1)
    assert await scripts.due("r", keys.priority_line(QUEUE, -2)) == NOW + 1_000
    assert await scripts.redis.zrange(keys.PRIORITIES + QUEUE, 0, -1, withscores=True) == [(b"-2", -2)]


@pytest.mark.parametrize("level", [0, 5])
async def test_one_that_replaces_stands_in_its_own_line_and_in_no_other(scripts: Scripts, level: int) -> None:
    await enqueue(scripts, priority=3)
    await enqueue(scripts, priority=level, delay=1, replace=True)
    assert await scripts.due("r", keys.priority_line(QUEUE, 3)) is None
    assert await scripts.due("r", keys.priority_line(QUEUE, 5)) == (NOW + 1_000 if level else None)


async def test_one_that_is_known_stands_in_no_line(scripts: Scripts) -> None:
    await scripts.redis.set(keys.RESULT + "r", "{}")
    await enqueue(scripts, priority=3)
    assert await scripts.redis.keys("worker:*") == []
