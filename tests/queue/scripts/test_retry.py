"""retry.lua: puts an ended run back into its queue; the first caller removes the dead letter."""

from __future__ import annotations

import asyncio

import pytest

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker.queue import keys

PAYLOAD, PREVIOUS_RESULT, TRY = keys.JOB + "r", keys.RESULT + "r", keys.RETRY + "r"


async def retry(scripts: Scripts, *, letter: bool) -> bool:
    return await scripts.store.retry("r", b"again", queue=QUEUE, letter=letter)


async def ended(scripts: Scripts) -> None:
    """`r` has failed permanently, after a cancel command that came too late; an operator retries it."""
    await scripts.redis.mset({PREVIOUS_RESULT: "{}", TRY: 5})
    await scripts.redis.hset(keys.DEAD, "r", "{}")
    await scripts.redis.zadd(keys.DEAD_AT, {"r": 1, "another": 1})
    await scripts.redis.sadd(keys.CANCELLED, "r", "another")
    await scripts.redis.sadd(keys.RETRIED, "r", "another")


@pytest.mark.parametrize("letter", [False, True])
async def test_it_is_due_now_as_if_it_had_never_run(scripts: Scripts, letter: bool) -> None:
    await ended(scripts)
    assert await retry(scripts, letter=letter)
    assert await scripts.due("r") == NOW
    assert await scripts.redis.mget(PAYLOAD, PREVIOUS_RESULT, TRY) == [b"again", None, None]
    assert await scripts.redis.exists(keys.DEAD) == 0
    assert await scripts.redis.zrange(keys.DEAD_AT, 0, -1) == [b"another"]
    assert await scripts.redis.smembers(keys.CANCELLED) == {b"another"}
    assert await scripts.redis.smembers(keys.RETRIED) == {b"another"}


async def test_a_run_of_the_ledger_needs_no_letter(scripts: Scripts) -> None:
    assert await retry(scripts, letter=False)
    assert await scripts.due("r") == NOW


async def test_a_letter_that_has_gone_was_taken_by_another_one(scripts: Scripts) -> None:
    await ended(scripts)
    await scripts.redis.hdel(keys.DEAD, "r")
    await scripts.redis.srem(keys.RETRIED, "r")
    before = await scripts.everything()
    assert not await retry(scripts, letter=True)
    assert await scripts.everything() == before


async def test_of_many_that_come_for_a_letter_one_takes_it(scripts: Scripts) -> None:
    await ended(scripts)
    assert sum(await asyncio.gather(*(retry(scripts, letter=True) for _ in range(10)))) == 1


async def test_a_letter_whose_id_was_enqueued_again_stays(scripts: Scripts) -> None:
    await ended(scripts)
    await scripts.redis.zadd(QUEUE, {"r": NOW + 5_000})
    await scripts.redis.set(PAYLOAD, "another one's")
    assert not await retry(scripts, letter=True)
    assert await scripts.due("r") == NOW + 5_000
    assert await scripts.redis.get(PAYLOAD) == b"another one's"
    assert await scripts.redis.hexists(keys.DEAD, "r")


@pytest.mark.parametrize("there", [False, True])
async def test_an_order_is_done_with_also_where_it_came_too_late(scripts: Scripts, there: bool) -> None:
    """Otherwise each worker would call with it repeatedly."""
    await ended(scripts)
    if there:
        await scripts.redis.zadd(QUEUE, {"r": 1})
    else:
        await scripts.redis.hdel(keys.DEAD, "r")
    assert not await retry(scripts, letter=True)
    assert await scripts.redis.smembers(keys.RETRIED) == {b"another"}
