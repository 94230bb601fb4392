"""The table of keys, and the keys that a worker writes to Redis."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.queue import keys

go = {"on": asyncio.Event()}


@job
async def fine(ctx: JobContext) -> int:
    """Succeed."""
    return 1


@job
async def fatal(ctx: JobContext) -> None:
    """Fail permanently."""
    raise NonRetryableError("no")


@job
async def flaky(ctx: JobContext) -> None:
    """Fail, and be attempted again."""
    raise ValueError("not yet")


@job
async def walk(ctx: JobContext) -> None:
    """Wait in the first batch until the test ends."""
    async for _ in ctx.chunks(select(Author), size=10):
        await go["on"].wait()


@job(concurrency=1, rate="1/minute", unique=["number"])
async def bounded(ctx: JobContext, number: int) -> None:
    """Hold its slot until the test ends."""
    await go["on"].wait()


@job(fair_by="tenant")
async def fair(ctx: JobContext, tenant: str) -> None:
    """Take turns."""


async def test_the_table_knows_every_key_that_a_live_worker_leaves_and_its_type(
    client: Client, redis: Redis, database: Database, fast: Settings
) -> None:
    go["on"] = asyncio.Event()
    await fill_authors(database, 20)
    await redis.zadd(keys.ABORT, {"stranger": worker_time().timestamp() * 1000})
    await redis.sadd(keys.PAUSED, "paused-one")
    await redis.hset(keys.PACE, "walk", "1000")
    await redis.sadd(keys.CANCELLED, "nobody")
    await redis.sadd(keys.DRAINED, "somebody-else")
    await redis.hset(keys.LIMITS, "somebody", "5")
    await redis.hset(keys.RATES, "somebody", "5")
    settings = with_worker(fast, backoff_base_seconds=5.0, backoff_max_seconds=5.0, queue_limits={"arq:queue": 100})
    async with working(settings, fine, fatal, flaky, walk, bounded, fair) as worker:
        for one in (fine, fatal, flaky, walk):
            await client.enqueue(one.options(id=one.name))
        async with database.transaction() as session:
            await client.enqueue_in(session, fine.options(id="paused-one"))
        await client.enqueue(bounded.options(id="bounded"), number=1)
        await until(lambda: redis.exists(keys.LIMIT + "bounded"))
        await client.enqueue(bounded, number=2)
        await until(lambda: redis.exists(keys.HELD + "bounded"))
        await client.group([fine.call(), fine.options(delay=60).call()], id="g", then=fine.options(delay=60).call())
        await until(lambda: redis.exists(keys.GROUP + "g:done"))
        await client.enqueue(fine.options(id="deferred", delay=60, priority=5))
        await client.enqueue(fair.options(delay=60), tenant="north")
        await (await client.enqueue(fair, tenant="south")).result(timeout=120)
        await redis.set("arq:job:unheard-of", '{"f": "no_such_job"}')
        await redis.zadd("arq:queue", {"unheard-of": 0})
        await until(lambda: redis.exists(keys.UNKNOWN + "arq:queue"))
        await worker.scheduler._store.fire(
            "cron:fine", '{"f": "fine"}', queue="arq:queue", due=worker_time(), line="fine * * * * *"
        )
        for run_id, state in (("fine", b"succeeded"), ("fatal", b"dead"), ("flaky", b"waiting"), ("walk", b"running")):
            await until(lambda run_id=run_id, state=state: _is(redis, run_id, state))
        for name in ("arq:retry:flaky", "arq:in-progress:walk", keys.CRON, keys.PRUNED, "arq:queue:health-check"):
            await until(lambda name=name: redis.exists(name))
        await redis.sadd(keys.RETRIED, "fine")  # a succeeded one does not go again
        seen = set()
        async for raw in redis.scan_iter(count=1000):
            kind = (await redis.type(raw)).decode()
            if kind == "none":
                continue  # has gone meanwhile
            known = keys.find(raw.decode())
            assert known is not None, f"{raw!r} is in Redis, and keys.SCHEMA does not know it"
            assert keys.TYPE_ANSWERS.get(known.type, known.type) == kind, raw
            seen.add(known.name)
            if "result_ttl" in known.lives and raw.decode().endswith(":fine"):
                assert await redis.ttl(raw) > 0, raw
        short_lived = {keys.RETRIED, keys.PROBE, keys.RESERVED + "<id>", keys.FAIR_TURNS + "<queue>"}
        short_lived |= {keys.IDEMPOTENT + "<hash>"}  # written by `worker web`
        assert {one.name for one in keys.SCHEMA} - seen <= short_lived, "the table has keys that are never written"
        go["on"].set()


def worker_time() -> datetime:
    """Return now."""
    return datetime.now(UTC)


async def _is(redis: Redis, run_id: str, state: bytes) -> bool:
    return await redis.hget(keys.RUN + run_id, "state") == state


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("arq:queue", "arq:queue"),
        ("arq:job:arq:queue", "arq:job:<id>"),
        ("worker:run:cron:a:1", "worker:run:<id>"),
        ("worker:runs", None),
        ("strange", None),
    ],
)
def test_a_key_is_found_by_its_form(key: str, name: str | None) -> None:
    found = keys.find(key)
    assert (found.name if found else None) == name


def test_another_queue_is_a_queue() -> None:
    assert keys.find("slow", queue="slow") == keys.find("arq:queue")
    assert keys.find("slow:health-check", queue="slow") == keys.find("arq:queue:health-check")


def test_a_worker_starts_where_docstrings_are_stripped() -> None:
    command = [sys.executable, "-OO", "-m", "worker", "keys"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "worker:paused" in run.stdout


def test_the_docstring_has_the_table() -> None:
    assert keys.as_markdown() in (keys.__doc__ or "")
