"""enqueue_many.lua: many jobs in one call, each once for its id."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts
from worker.queue import keys


async def enqueue(scripts: Scripts, *run_ids: str, **options: Any) -> frozenset[int]:
    jobs = [(run_id, f"payload of {run_id}") for run_id in run_ids]
    return await scripts.store.enqueue_many(jobs, queue=QUEUE, **options)


async def test_each_is_due_now_with_its_payload(scripts: Scripts) -> None:
    assert await enqueue(scripts, "a", "b") == frozenset()
    assert [await scripts.due(run_id) for run_id in "ab"] == [NOW, NOW]
    assert await scripts.redis.mget(keys.JOB + "a", keys.JOB + "b") == [b"payload of a", b"payload of b"]
    assert sorted(await scripts.redis.keys("*")) == [b"arq:job:a", b"arq:job:b", b"arq:queue"]


async def test_a_delay_counts_from_now_and_a_time_is_one(scripts: Scripts) -> None:
    await enqueue(scripts, "delayed", delay=2.5)
    await enqueue(scripts, "timed", at=datetime.fromtimestamp(1_900_000_000.5, UTC))
    assert await scripts.due("delayed") == NOW + 2_500
    assert await scripts.due("timed") == 1_900_000_000_500


async def test_those_that_wait_or_have_a_result_are_told_by_their_places(scripts: Scripts) -> None:
    await scripts.redis.mset({keys.JOB + "waits": "before", keys.RESULT + "over": "{}"})
    assert await enqueue(scripts, "new", "waits", "newer", "over") == {1, 3}
    assert await scripts.redis.get(keys.JOB + "waits") == b"before"
    assert await scripts.redis.exists(keys.JOB + "over") == 0
    assert sorted(await scripts.redis.zrange(QUEUE, 0, -1)) == [b"new", b"newer"]


async def test_one_that_comes_twice_in_one_call_is_put_there_once(scripts: Scripts) -> None:
    assert await enqueue(scripts, "a", "b", "a") == {2}
    assert await scripts.redis.zcard(QUEUE) == 2


async def test_where_all_are_known_nothing_is_written(scripts: Scripts) -> None:
    await scripts.redis.set(keys.RESULT + "a", "{}")
    before = await scripts.everything()
    assert await enqueue(scripts, "a", priority=3) == {0}
    assert await scripts.everything() == before


async def test_of_clients_that_come_together_each_job_has_one(scripts: Scripts) -> None:
    known = await asyncio.gather(*(enqueue(scripts, *"abcdef") for _ in range(5)))
    assert sorted(map(len, known)) == [0, 6, 6, 6, 6]


async def test_orders_that_are_left_of_earlier_runs_are_not_for_these(scripts: Scripts) -> None:
    await scripts.redis.sadd(keys.CANCELLED, "a", "known", "another")
    await scripts.redis.set(keys.JOB + "known", "{}")
    await enqueue(scripts, "a", "known")
    assert await scripts.redis.smembers(keys.CANCELLED) == {b"known", b"another"}


async def test_they_stand_in_the_line_of_their_level(scripts: Scripts) -> None:
    await enqueue(scripts, "a", "b", priority=3, delay=1)
    line = await scripts.redis.zrange(keys.priority_line(QUEUE, 3), 0, -1, withscores=True)
    assert line == [(b"a", NOW + 1_000), (b"b", NOW + 1_000)]
    assert await scripts.redis.zrange(keys.PRIORITIES + QUEUE, 0, -1, withscores=True) == [(b"3", 3)]


# --- members of a group


async def enqueue_members(scripts: Scripts) -> frozenset[int]:
    jobs = [(f"g:{place}", "{}") for place in (1, 2)]
    return await scripts.store.enqueue_many(jobs, queue=QUEUE, group="g")


async def test_a_member_that_is_done_is_known_also_when_its_result_is_forgotten(scripts: Scripts) -> None:
    await scripts.redis.hset(keys.GROUP + "g:done", "2", "")
    await scripts.redis.hset(keys.GROUP + "another:done", "1", "")
    assert await enqueue_members(scripts) == {1}
    assert await scripts.redis.zrange(QUEUE, 0, -1) == [b"g:1"]


async def test_of_a_group_that_has_called_back_all_are_known(scripts: Scripts) -> None:
    await scripts.redis.hset(keys.GROUP + "g", "called", 1)
    assert await enqueue_members(scripts) == {0, 1}
    assert await scripts.redis.exists(QUEUE) == 0
