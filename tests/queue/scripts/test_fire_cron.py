"""fire_cron.lua: of all workers with a due time of a cron line, however late, one enqueues it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from tests.queue.scripts.conftest import QUEUE, Scripts
from worker.queue import keys

LINE = "report * * * * * UTC"
DUE = 1_700_000_000_000


async def fire(scripts: Scripts, due: int = DUE, line: str = LINE, priority: int = 0) -> int:
    moment = datetime.fromtimestamp(due / 1000, UTC)
    fired = scripts.store.fire(f"cron:{due}", "payload", queue=QUEUE, due=moment, line=line, priority=priority)
    return int(await fired)


async def test_the_first_one_enqueues_it_for_its_due_time(scripts: Scripts) -> None:
    assert await fire(scripts) == 1
    assert await scripts.due(f"cron:{DUE}") == DUE
    assert await scripts.redis.get(f"{keys.JOB}cron:{DUE}") == b"payload"
    assert await scripts.redis.hgetall(keys.CRON) == {LINE.encode(): str(DUE).encode()}


async def test_of_many_that_come_together_one_enqueues_it(scripts: Scripts) -> None:
    assert sum(await asyncio.gather(*(fire(scripts) for _ in range(20)))) == 1


async def test_nobody_repeats_it_when_nothing_of_it_is_known_any_more(scripts: Scripts) -> None:
    await fire(scripts)
    await scripts.redis.delete(QUEUE, f"{keys.JOB}cron:{DUE}")  # it has run, and its result was not kept
    before = await scripts.everything()
    assert await fire(scripts) == 0
    assert await scripts.everything() == before


async def test_a_worker_that_comes_with_an_earlier_due_time_is_too_late(scripts: Scripts) -> None:
    await fire(scripts)
    before = await scripts.everything()
    assert await fire(scripts, DUE - 60_000) == 0
    assert await scripts.everything() == before


async def test_the_next_due_time_is_another_run(scripts: Scripts) -> None:
    # As numbers: the text of the one is less than that of the other.
    assert [await fire(scripts, 999_999_960_000), await fire(scripts, 1_000_000_020_000)] == [1, 1]
    assert await scripts.redis.zcard(QUEUE) == 2


async def test_each_line_has_a_last_due_time_of_its_own(scripts: Scripts) -> None:
    await fire(scripts)
    assert await fire(scripts, DUE - 60_000, "report 0 * * * * UTC") == 1


@pytest.mark.parametrize("known_by", [keys.JOB, keys.RESULT, keys.IN_PROGRESS])
async def test_what_a_stock_worker_has_enqueued_is_not_enqueued_again(scripts: Scripts, known_by: str) -> None:
    """The id is known by its payload while it waits, by its result, and by the lease that arq keeps for a minute."""
    await scripts.redis.set(f"{known_by}cron:{DUE}", "arq's")
    assert await fire(scripts) == 0
    assert await scripts.due(f"cron:{DUE}") is None
    assert await scripts.redis.get(f"{known_by}cron:{DUE}") == b"arq's"
    await scripts.redis.delete(f"{known_by}cron:{DUE}")
    assert await fire(scripts) == 0  # also when that has gone


async def test_one_with_a_priority_stands_in_the_line_of_its_level(scripts: Scripts) -> None:
    await fire(scripts, priority=3)
    assert await scripts.due(f"cron:{DUE}", keys.priority_line(QUEUE, 3)) == DUE
    assert await scripts.due("3", keys.PRIORITIES + QUEUE) == 3


async def test_one_without_a_priority_stands_in_no_line(scripts: Scripts) -> None:
    await fire(scripts)
    assert await scripts.redis.keys("worker:priorit*") == []


async def test_one_that_is_not_enqueued_stands_in_no_line(scripts: Scripts) -> None:
    await scripts.redis.set(f"{keys.RESULT}cron:{DUE}", "arq's")
    await fire(scripts, priority=3)
    assert await scripts.redis.keys("worker:priorit*") == []
