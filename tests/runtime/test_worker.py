"""The worker, with jobs that fail, hang, are unknown, paused, cancelled or drained."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import weakref
from uuid import UUID, uuid4

import pytest
from pydantic import Field
from redis.asyncio import Redis
from sqlalchemy import select, text, update

from tests.models import Author
from tests.runtime.gated_jobs import (
    fresh,  # noqa: F401  (used by each test)
    gate,
    is_logged,
    tries,
    wait_for_go,
    walk,
)
from tests.support.authors import count_seen, fill_authors
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, NonRetryableError, Retry, Settings, job
from worker.db.engine import Database
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")


@job
async def fail_twice(ctx: JobContext) -> int:
    """Succeed in the third attempt."""
    tries.append(ctx.attempt)
    if ctx.attempt < 3:
        raise ValueError("not yet")
    return ctx.attempt


@job(max_attempts=2)
async def always_fail(ctx: JobContext) -> None:
    """Fail."""
    tries.append(ctx.attempt)
    raise ValueError("never")


@job(do_not_retry=[KeyError])
async def not_again(ctx: JobContext, kind: str) -> None:
    """Fail with an error that another attempt cannot resolve."""
    tries.append(ctx.attempt)
    raise {"declared": KeyError("x"), "raised": NonRetryableError("x")}[kind]


@job
async def ask_again(ctx: JobContext) -> float:
    """Request another attempt after a delay. Return the time of the first one."""
    tries.append(ctx.attempt)
    if ctx.attempt == 1:
        raise Retry(after=0.3)
    return ctx.enqueued_at.timestamp()


@job(timeout=0.4)
async def too_long(ctx: JobContext) -> None:
    """Exceed the timeout."""
    tries.append(ctx.attempt)
    await asyncio.Event().wait()


@job
async def missing_table(ctx: JobContext) -> None:
    """Use a table that was dropped."""
    tries.append(ctx.attempt)
    async with ctx.session() as session:
        await session.execute(text("SELECT * FROM dropped"))


@job
async def fail_in_third_batch(ctx: JobContext) -> int:
    """Raise in each attempt, until none is left."""
    tries.append(ctx.attempt)
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        if batch.number == 3:
            raise ValueError("bad row")
    return ctx.rows_done


@job
async def drop_its_table(ctx: JobContext) -> None:
    """Lose the table in the middle of a walk."""
    tries.append(ctx.attempt)
    async for batch in ctx.chunks(select(Author), size=10, lock=False):
        if batch.number == 3:
            async with ctx.transaction() as session:
                await session.execute(text("DROP TABLE author CASCADE"))


@job
async def fill_the_disk(ctx: JobContext) -> int:
    """Write more than the limit allows."""
    tries.append(ctx.attempt)
    return await ctx.sweep(update(Author).values(seen=1), size=10)


@job
async def block_the_loop(ctx: JobContext, seconds: float) -> str:
    """Compute for long, without a thread of its own."""
    tries.append(ctx.attempt)
    time.sleep(seconds)
    return "done"


drawn: list[UUID] = []


@job(backoff=0, max_attempts=3)
async def draw(ctx: JobContext, key: UUID = Field(default_factory=uuid4)) -> None:  # noqa: B008
    """Fail twice, and remember its argument."""
    drawn.append(key)
    if ctx.attempt < 3:
        raise ValueError("again")


async def test_a_default_factory_is_drawn_once_for_a_job_by_name(fast: Settings, client: Client) -> None:
    drawn.clear()
    async with working(fast, draw):
        await (await client.enqueue("draw")).result(timeout=120)
    assert len(drawn) == 3 and len(set(drawn)) == 1


async def test_a_failed_job_is_tried_again(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(fail_twice)
    async with working(fast, fail_twice):
        assert await run.result(timeout=120) == 3
    assert tries == [1, 2, 3]
    assert await redis.keys("arq:[jr]e*") == [f"arq:result:{run.id}".encode()]


async def test_after_its_last_try_a_job_is_a_dead_letter(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(always_fail)
    async with working(fast, always_fail):
        with pytest.raises(JobFailed, match=r"ValueError: never \(attempt 2, the last\)"):
            await run.result(timeout=120)
    assert tries == [1, 2]
    letter = json.loads(await redis.hget(keys.DEAD, run.id))
    assert letter["attempts"] == 2
    assert json.loads(letter["payload"])["f"] == "always_fail"


@pytest.mark.parametrize("kind", ["declared", "raised"])
async def test_what_another_try_cannot_cure_gets_none(fast: Settings, client: Client, kind: str) -> None:
    run = await client.enqueue(not_again, kind=kind)
    async with working(fast, not_again):
        with pytest.raises(JobFailed):
            await run.result(timeout=120)
    assert tries == [1]


async def test_a_dropped_table_is_an_error_at_once(fast: Settings, client: Client) -> None:
    run = await client.enqueue(missing_table)
    async with working(fast, missing_table):
        with pytest.raises(JobFailed, match='relation "dropped" does not exist'):
            await run.result(timeout=120)
    assert tries == [1]


async def test_retry_after_is_obeyed(fast: Settings, client: Client) -> None:
    began = time.time()
    run = await client.enqueue(ask_again)
    async with working(fast, ask_again):
        await run.result(timeout=120)
    assert tries == [1, 2]
    assert time.time() - began >= 0.3


async def test_a_job_that_takes_too_long_is_cancelled(fast: Settings, client: Client) -> None:
    run = await client.enqueue(too_long)
    async with working(with_worker(fast, max_attempts=2), too_long):
        with pytest.raises(JobFailed, match=r"took longer than 0\.4 s"):
            await run.result(timeout=120)
    assert tries == [1, 2]


async def test_a_walk_has_no_total_timeout(fast: Settings, client: Client, database: Database) -> None:
    await fill_authors(database, 30)
    run = await client.enqueue(walk)
    async with working(fast, walk):
        await asyncio.wait_for(gate["begun"].wait(), 60)
        with pytest.raises(TimeoutError):
            await run.result(timeout=2)  # longer than the timeout of the job, 1 s
        gate["go"].set()
        assert await run.result(timeout=120) == 30


async def test_an_unknown_job_is_kept_for_a_worker_that_knows_it(
    fast: Settings, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    run = await client.enqueue("fail_twice")
    async with working(fast, walk):
        await until(lambda: is_logged(caplog, "unknown job 'fail_twice'"))
    assert await run.status() == "deferred"
    await client.redis.zadd("arq:queue", {run.id: 0})  # now, not in five seconds
    async with working(fast, fail_twice):
        assert await run.result(timeout=120) == 3


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{", "the payload is not JSON"),
        ("[1]", "not an object with the job's name"),
        ('{"f": "walk", "k": [1]}', "its k is not an object"),
        ('{"f": "walk", "k": {"surprise": 1}}', "surprise: extra inputs are not permitted"),
        (None, "there is no payload"),
    ],
)
async def test_a_broken_payload_goes_to_the_dead_letters(
    fast: Settings, redis: Redis, client: Client, payload: str | None, message: str
) -> None:
    if payload is not None:
        await redis.set("arq:job:broken", payload)
    await redis.zadd("arq:queue", {"broken": 0})
    async with working(fast, walk):
        letter = json.loads(await until(lambda: redis.hget(keys.DEAD, "broken")))
        assert message in letter["error"]
        assert letter["payload"] == (payload or "")
        with pytest.raises(JobFailed, match=message):
            await client.run("broken").result(timeout=120)
    assert await redis.zcard("arq:queue") == 0


async def test_an_error_names_its_batch_and_keys(fast: Settings, client: Client, database: Database) -> None:
    await fill_authors(database, 50)
    run = await client.enqueue(fail_in_third_batch)
    async with working(with_worker(fast, max_attempts=2), fail_in_third_batch):
        with pytest.raises(JobFailed, match="batch 3, key 21"):
            await run.result(timeout=120)
    # The first attempt committed two batches: attempts without progress are counted from there.
    assert tries == [1, 1, 2]
    assert await count_seen(database) == {0: 30, 1: 20}
    async with database.session() as session:
        row = (await session.execute(text("SELECT state, error, traceback FROM worker.run"))).one()
    assert row.state == "dead"
    assert "batch 3, key 21]" in row.error  # the last attempt begins with one row
    assert "bad row" in row.traceback


async def test_a_table_dropped_in_the_middle_ends_the_run_at_once(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 50)
    run = await client.enqueue(drop_its_table)
    async with working(fast, drop_its_table):
        with pytest.raises(JobFailed, match='relation "author" does not exist'):
            await run.result(timeout=120)
    assert tries == [1]


async def test_a_full_disk_is_an_error_and_not_a_loop(fast: Settings, client: Client, database: Database) -> None:
    await fill_authors(database, 50)
    async with database.transaction() as session:  # PostgreSQL's error for a full disk, from row 31 on
        await session.execute(text(_FULL_DISK))
        await session.execute(
            text("CREATE TRIGGER full_disk BEFORE UPDATE ON author FOR EACH ROW EXECUTE FUNCTION f()")
        )
    run = await client.enqueue(fill_the_disk)
    async with working(with_worker(fast, max_attempts=2), fill_the_disk):
        with pytest.raises(
            JobFailed, match=r"DiskFullError: could not .*attempt 3, the last: 2 without progress.*up to key \d+"
        ):
            await run.result(timeout=120)
    assert tries == [1, 1, 2]  # the first one committed three batches
    assert await count_seen(database) == {0: 20, 1: 30}


_FULL_DISK = """
CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.id > 30 THEN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END IF;
    RETURN NEW;
END $$
"""


async def test_a_run_that_ended_but_was_not_acknowledged_answers_again(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    await fill_authors(database, 20)
    gate["go"].set()
    run = await client.enqueue(walk)
    payload = await redis.get(f"arq:job:{run.id}")
    async with working(fast, walk):
        assert await run.result(timeout=120) == 20
        await redis.delete(f"arq:result:{run.id}")
        await redis.set(f"arq:job:{run.id}", payload)
        await redis.set(f"arq:retry:{run.id}", 1)
        await redis.zadd("arq:queue", {run.id: 0})
        assert await run.result(timeout=120) == 20
    assert await count_seen(database) == {1: 20}


async def test_a_job_that_blocks_the_loop_keeps_its_lease(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(block_the_loop, seconds=2.0)  # more than three leases
    async with working(fast, block_the_loop):
        assert await run.result(timeout=120) == "done"
    assert tries == [1]


async def test_a_loop_that_is_blocked_for_too_long_loses_its_leases(
    fast: Settings, client: Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await client.enqueue(block_the_loop, seconds=2.0)
    with caplog.at_level(logging.ERROR):
        async with working(with_worker(fast, loop_block_tolerance_seconds=0.5), block_the_loop):
            await until(lambda: is_logged(caplog, "the leases of its jobs are not renewed"))


async def test_a_run_that_redis_has_forgotten_is_put_back(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    await fill_authors(database, 50)
    run = await client.enqueue(walk)
    async with working(fast, walk):
        await asyncio.wait_for(gate["begun"].wait(), 60)
    await redis.flushall()
    async with database.transaction() as session:
        await session.execute(text("UPDATE worker.run SET updated_at = now() - interval '1 minute'"))
        await session.execute(text("UPDATE worker.step SET updated_at = now() - interval '1 minute'"))
    gate["go"].set()
    async with working(fast, walk):
        assert await run.result(timeout=120) == 50
    assert await count_seen(database) == {1: 50}


async def test_jobs_without_a_loop_touch_no_ledger_table(fast: Settings, client: Client, database: Database) -> None:
    gate["go"].set()
    run = await client.enqueue(wait_for_go)
    async with working(fast, wait_for_go):
        await run.result(timeout=120)
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM worker.run")) == 0


contexts: list[weakref.ref[JobContext]] = []


@job
async def leave_a_trace(ctx: JobContext) -> None:
    """Keep a weak reference to the context."""
    contexts.append(weakref.ref(ctx))


async def test_jobs_that_have_ended_are_freed_without_the_garbage_collector(settings: Settings, client: Client) -> None:
    runs = await client.enqueue_many(leave_a_trace, [{}] * 50)
    gc.collect()
    gc.disable()  # its pauses were a quarter of what an empty job cost
    try:
        async with working(settings, leave_a_trace):
            for run in runs:
                await run.result(timeout=120)
        assert len(contexts) == 50
        assert [found for found in contexts if found() is not None] == []
    finally:
        gc.enable()
