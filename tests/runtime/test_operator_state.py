"""Operator commands by one command of redis-cli: drain a worker, retry a failed run, pause a queue."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.fork_server import ForkServer
from tests.support.waiting import until, until_status
from tests.support.workers import with_worker, working
from worker import Client, JobContext, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.embedded import Services
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")
tries: list[int] = []


@job
async def once_bad(ctx: JobContext) -> str:
    """Fail permanently in the first run."""
    tries.append(ctx.attempt)
    if len(tries) == 1:
        raise NonRetryableError("at first")
    return "fine"


@job
async def quick(ctx: JobContext) -> str:
    """Succeed."""
    return "done"


async def test_one_worker_of_two_is_drained_exits_with_0_and_takes_its_order_back(
    redis: Redis, database: Database, servers: Services, tmp_path: Path
) -> None:
    log = tmp_path / "south.log"
    with log.open("wb") as out:
        south, west = (
            ForkServer.get().spawn(
                "worker", "run", "--name", name, env=servers.environment(), stdout=number, stderr=number
            )
            for name, number in (("south", out.fileno()), ("west", 2))
        )
    try:
        await until(lambda: _alive(redis, 2))
        await redis.sadd(keys.DRAINED, "south", "nobody")
        assert await asyncio.to_thread(south.wait, 20) == 0
        assert await redis.smembers(keys.DRAINED) == {b"nobody"}
        assert await redis.hkeys(keys.WORKERS) == [b"west"]
        assert west.poll() is None
    finally:
        for process in (south, west):
            process.terminate()
            await asyncio.to_thread(process.wait, 20)
    assert "drain started reason=worker:drain" in log.read_text()


@pytest.mark.parametrize("watched", [True, False], ids=["told of changes", "asking"])
async def test_a_worker_at_work_hears_that_it_is_to_drain(
    redis: Redis, client: Client, fast: Settings, watched: bool
) -> None:
    async with working(with_worker(fast, name="north"), quick) as worker:
        assert await (await client.enqueue(quick)).result(timeout=120) == "done"
        if not watched:
            await worker.listener.stop()
        await redis.sadd(keys.DRAINED, "north")
        await until(lambda: _empty(redis, keys.DRAINED))
        assert worker.is_draining
        left = await client.enqueue(quick)
        await until(lambda: _alive(redis, 0))
    assert await left.status() == "waiting"


async def _alive(redis: Redis, number: int) -> bool:
    return bool(await redis.hlen(keys.WORKERS) == number)


@pytest.mark.parametrize("watched", [True, False], ids=["told of changes", "asking"])
async def test_a_dead_letter_is_run_again_by_order(
    redis: Redis, client: Client, fast: Settings, watched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tries.clear()
    caplog.set_level(logging.INFO)
    run = await client.enqueue(once_bad)
    async with working(fast, once_bad) as worker:
        await until(lambda: redis.hexists(keys.DEAD, run.id))
        if not watched:
            await worker.listener.stop()
        await redis.sadd(keys.RETRIED, run.id, "nobody")
        await until_status(run, "succeeded")
        await until(lambda: _empty(redis, keys.RETRIED))
        assert not await redis.exists(keys.DEAD)
    assert "worker:retry ignored run=nobody" in caplog.text
    assert caplog.text.count("worker:retry ignored") == 1


async def test_a_paused_queue_is_not_served_and_another_one_is(redis: Redis, client: Client, fast: Settings) -> None:
    await redis.sadd(keys.PAUSED, "slow")
    held = await client.enqueue(quick.options(queue="slow"))
    free = await client.enqueue(quick)
    async with working(with_worker(fast, queue="slow", name="slow"), quick), working(fast, quick):
        assert await free.result(timeout=120) == "done"
        assert await redis.exists(keys.RETRY + held.id) == 0  # not even claimed
        await redis.srem(keys.PAUSED, "slow")
        assert await held.result(timeout=120) == "done"


async def test_of_several_queues_of_one_worker_one_is_paused(redis: Redis, client: Client, fast: Settings) -> None:
    await redis.sadd(keys.PAUSED, "slow")
    held = await client.enqueue(quick.options(queue="slow"))
    async with working(with_worker(fast, queues={"slow": 9, "arq:queue": 1}), quick):
        for _ in range(3):
            assert await (await client.enqueue(quick)).result(timeout=120) == "done"
        assert await redis.exists(keys.RETRY + held.id) == 0
        await redis.srem(keys.PAUSED, "slow")
        assert await held.result(timeout=120) == "done"


async def _empty(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)
