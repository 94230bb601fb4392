"""A walk whose statement a deploy has changed is left to the workers whose code began it, while they live."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, Job, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue import keys

gate: dict[str, asyncio.Event] = {}


def make_walk(least_id: int) -> Job[..., Any]:
    """Return the walk of one version of the code: each has its own WHERE."""

    @job(name="walk")
    async def walk(ctx: JobContext) -> int:
        """Count each author once, and wait in the third batch."""
        async for batch in ctx.chunks(select(Author).where(Author.id > least_id), size=10):
            if batch.number == 3 and not gate["go"].is_set():
                gate["begun"].set()
                await gate["go"].wait()
            for author in batch:
                author.seen += 1
        return ctx.rows_done

    return walk


OLD, NEW = make_walk(0), make_walk(1)


@pytest.fixture(autouse=True)
async def versions(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    """Both versions in one process: the version of the code follows from the walk in the registry."""

    def code_version(registry: Registry) -> str:
        return "old" if registry.get("walk") is OLD else "new"

    monkeypatch.setattr(Registry, "code_version", property(code_version))
    gate.update(go=asyncio.Event(), begun=asyncio.Event())
    await fill_authors(database, 50)


async def state_of(database: Database) -> str:
    record = await Ledger(database).find("w1")
    return "none" if record is None else record.state


async def was_left(caplog: pytest.LogCaptureFixture) -> bool:
    return any("Returned to the queue for a worker with the code" in record.getMessage() for record in caplog.records)


async def test_new_worker_leaves_a_walk_of_the_old_code_to_an_old_worker_that_lives(
    fast: Settings, database: Database, redis: Redis, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "longhaul.jobs")
    run = await client.enqueue(OLD.options(id="w1"))
    async with working(with_worker(fast, name="old-1"), OLD):
        await asyncio.wait_for(gate["begun"].wait(), 60)
    assert await run.status() == "waiting"  # drained behind its second batch
    await redis.sadd(keys.PAUSED, "arq:queue")
    async with working(with_worker(fast, name="old-2", queue="elsewhere"), OLD):
        await until(lambda: redis.hexists(keys.WORKERS, "old-2"))
        await redis.srem(keys.PAUSED, "arq:queue")
        async with working(with_worker(fast, name="new"), NEW):
            await until(lambda: was_left(caplog))
            assert await state_of(database) in ("waiting", "running")
            assert int(await redis.get(keys.RETRY + "w1") or 0) <= 2
    gate["go"].set()
    await redis.zadd("arq:queue", {"w1": 0})
    async with working(with_worker(fast, name="old-3"), OLD):
        assert await run.result(timeout=120) == 50
    assert await count_seen(database) == {1: 50}


async def test_walk_of_the_old_code_fails_with_the_command_to_accept_it_if_no_old_worker_lives(
    fast: Settings, database: Database, redis: Redis, client: Client
) -> None:
    run = await client.enqueue(OLD.options(id="w1"))
    async with working(with_worker(fast, name="old-1"), OLD):
        await asyncio.wait_for(gate["begun"].wait(), 60)
    gate["go"].set()
    async with working(with_worker(fast, name="new"), NEW):
        with pytest.raises(JobFailed, match="--accept-statement"):
            await run.result(timeout=120)
    assert await count_seen(database) == {0: 30, 1: 20}


async def test_old_worker_that_drains_does_not_keep_a_walk_from_the_new_ones(
    fast: Settings, database: Database, redis: Redis, client: Client
) -> None:
    run = await client.enqueue(OLD.options(id="w1"))
    async with working(with_worker(fast, name="old-1"), OLD):
        await asyncio.wait_for(gate["begun"].wait(), 60)
    gate["go"].set()
    async with working(with_worker(fast, name="old-2", queue="elsewhere"), OLD) as old:
        old.drain(why="the end of the test")
        async with working(with_worker(fast, name="new"), NEW):
            with pytest.raises(JobFailed, match="--accept-statement"):
                await run.result(timeout=120)
