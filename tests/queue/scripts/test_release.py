"""release.lua: returns a slot, and makes the first waiting job due."""

from __future__ import annotations

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker import JobContext, job
from worker.queue import keys
from worker.queue.claims import Claim

PLACES, LINE = keys.LIMIT + "narrow", keys.HELD + "narrow"


@job(concurrency=1)
async def narrow(ctx: JobContext) -> None:
    """One at once."""


async def leave(scripts: Scripts) -> None:
    """Release the slot of `r`."""
    await scripts.limiter.release(narrow, Claim("r", QUEUE, 0, b"", 1), {})


async def test_its_place_is_free_and_those_of_others_are_not(scripts: Scripts) -> None:
    await scripts.redis.zadd(PLACES, {"r": 1, "another": 1})
    await leave(scripts)
    assert await scripts.redis.zrange(PLACES, 0, -1) == [b"another"]


async def test_the_one_that_waits_longest_is_due_now_and_no_other(scripts: Scripts) -> None:
    await scripts.redis.zadd(LINE, {"second": 2, "first": 1})
    await scripts.redis.zadd(QUEUE, {"first": NOW + 5_000, "second": NOW + 5_000})
    await leave(scripts)
    assert await scripts.due("first") == NOW
    assert await scripts.due("second") == NOW + 5_000
    assert await scripts.redis.zrange(LINE, 0, -1) == [b"second"]


async def test_one_that_left_the_queue_is_passed_over_and_not_brought_back(scripts: Scripts) -> None:
    """The job was cancelled while it waited for a slot."""
    await scripts.redis.zadd(LINE, {"gone": 1, "also gone": 2, "there": 3})
    await scripts.redis.zadd(QUEUE, {"there": NOW + 5_000})
    await leave(scripts)
    assert await scripts.redis.zrange(QUEUE, 0, -1, withscores=True) == [(b"there", NOW)]
    assert await scripts.redis.exists(LINE) == 0


async def test_where_nobody_waits_nothing_is_due(scripts: Scripts) -> None:
    await scripts.redis.zadd(LINE, {"gone": 1})
    await scripts.redis.zadd(QUEUE, {"another": NOW + 5_000})
    await leave(scripts)
    assert await scripts.redis.zrange(QUEUE, 0, -1, withscores=True) == [(b"another", NOW + 5_000)]


async def test_the_one_that_is_due_has_its_priority_still(scripts: Scripts) -> None:
    line = keys.priority_line(QUEUE, 5)
    await scripts.redis.zadd(keys.PRIORITIES + QUEUE, {"5": 5})
    for where in (QUEUE, line):
        await scripts.redis.zadd(where, {"first": NOW + 5_000, "second": NOW + 5_000})
    await scripts.redis.zadd(LINE, {"first": 1})
    await leave(scripts)
    assert await scripts.due("first", line) == NOW
    assert await scripts.due("second", line) == NOW + 5_000
