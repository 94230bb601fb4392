"""Interrupted jobs: their time to clean up, and the treatment of jobs that do not end."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, insert, select

from tests.attempt.deaf_jobs import (
    nothing_seen,  # noqa: F401  (used by each test)
    seen,
)
from tests.models import Author, authors
from tests.support.authors import fill_authors
from tests.support.waiting import until_true
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, JobContext, JobFailed, Settings, job
from worker.attempt import cancellation
from worker.attempt.cancellation import JobCancellation
from worker.db.engine import Database
from worker.embedded import Services
from worker.launch import EXIT_ABANDONED
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")


async def swallow(until_set: asyncio.Event) -> None:
    """Wait, and ignore every cancellation."""
    while not until_set.is_set():
        with suppress(asyncio.CancelledError):
            await until_set.wait()


@asynccontextmanager
async def cleaning_exit() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await clean_up()


async def clean_up() -> None:
    try:
        await asyncio.sleep(0.5)  # longer than several looks of the clock, and times to say it again
    except asyncio.CancelledError:
        seen["cleaned"].append("interrupted again")
        raise
    seen["cleaned"].append("in peace")


@job(timeout=0.1, max_attempts=1)
async def tidy(ctx: JobContext, how: str) -> None:
    """Clean up after the timeout, in a wait_for, which may swallow the cancellation."""
    if how == "with":
        async with cleaning_exit():
            await asyncio.wait_for(asyncio.Event().wait(), 60)
    elif how == "except":
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 60)
        except asyncio.CancelledError as error:
            seen["tries"].append(str(error))
            await clean_up()
            raise
    elif how == "child":
        await asyncio.gather(in_finally(), asyncio.sleep(0))
    else:
        await in_finally()


async def in_finally() -> None:
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 60)
    finally:
        await clean_up()


@job(timeout=0.5, grace_period=0.2, backoff=0, max_attempts=2)
async def deaf(ctx: JobContext) -> str:
    """Swallow the interruption in the first attempt."""
    seen["tries"].append(ctx.attempt)
    if len(seen["tries"]) == 1:
        await swallow(seen["go"])
        seen["ended"].append("first")
        ctx.progress(5, 5)
        return "too late"
    return "second"


@job
async def deaf_for_long(ctx: JobContext) -> None:
    """Swallow the interruption."""
    seen["tries"].append(ctx.attempt)
    await swallow(seen["go"])


@job
async def brief(ctx: JobContext) -> str:
    """Return at once."""
    return "brief"


@job(grace_period=0.1, backoff=0)
async def deaf_walk(ctx: JobContext, lock: bool) -> int:
    """Swallow the interruption in the second batch of the first attempt."""
    seen["tries"].append(ctx.attempt)
    mine = len(seen["tries"])
    try:
        async for batch in ctx.chunks(select(Author), size=10, lock=lock):
            if lock:
                for author in batch:
                    author.seen += 1
            if mine == 1 and batch.number == 2:
                seen["begun"].set()
                await swallow(seen["go"])
            if not lock:  # until now, this batch has no transaction open
                await batch.bulk.update(Author, [{"id": author.id, "seen": author.seen + 1} for author in batch])
    except BaseException as error:
        seen["ended"].append(f"{type(error).__name__}: {error}")
        raise
    return ctx.rows_done


@job(grace_period=0.1)
async def deaf_in_transaction(ctx: JobContext) -> None:
    """Write, swallow a cancellation, attempt to commit, and attempt every other operation of a job."""
    try:
        async with ctx.transaction() as session:
            await session.execute(insert(Author).values(authors(1)))
            seen["begun"].set()
            await swallow(seen["go"])
    except BaseException as error:
        seen["ended"].append(type(error).__name__)
    for attempt in (_session(ctx), _walk(ctx), _bulk(ctx)):
        try:
            await attempt
        except BaseException as error:
            seen["ended"].append(type(error).__name__)


async def _session(ctx: JobContext) -> None:
    async with ctx.session():
        pass


async def _walk(ctx: JobContext) -> None:
    async for _ in ctx.chunks(select(Author)):
        pass


async def _bulk(ctx: JobContext) -> None:
    await ctx.bulk.insert(Author, authors(1))


@job(concurrency=1, grace_period=0.1, backoff=0)
async def deaf_and_alone(ctx: JobContext) -> None:
    """Swallow the interruption in the first attempt; in the second, wait for a signal."""
    seen["tries"].append(ctx.attempt)
    if len(seen["tries"]) == 1:
        await swallow(seen["go"])
        return
    seen["begun"].set()
    await seen["second"].wait()


@pytest.mark.parametrize("how", ["finally", "except", "with", "child"])
async def test_a_cleanup_is_not_interrupted_again(
    fast: Settings, client: Client, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(cancellation, "_REPEAT_SECONDS", 0.05)
    run = await client.enqueue(tidy, how)
    async with working(fast, tidy):
        with pytest.raises(JobFailed, match=r"TimeoutError: took longer than 0\.1 s"):
            await run.result(timeout=120)
    assert seen["cleaned"] == ["in peace"]
    assert seen["tries"] == (["timeout"] if how == "except" else [])


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="wait_for of later versions swallows nothing")
async def test_what_wait_for_swallows_is_said_again_and_once_it_is_heard_never() -> None:
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()
    second = asyncio.Event()
    heard = []

    async def body() -> None:
        await asyncio.wait_for(arrived, 60)
        try:
            await asyncio.wait_for(second.wait(), 60)
        except asyncio.CancelledError:
            heard.append("once")
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.2)
            heard.append("cleaned up outside of the handler")

    task = asyncio.create_task(body())
    await until_true(lambda: task.get_coro().cr_await is not None)
    arrived.set_result("with the cancellation")
    now = loop.time()
    one = JobCancellation(task, "timeout", now=now, grace=10)
    for _ in range(5):
        await asyncio.sleep(0)
        one.repeat_if_swallowed(now + 0.1)
    assert not task.done() and not heard, "wait_for swallowed it"
    one.repeat_if_swallowed(now + 1.1)
    for _ in range(5):
        await asyncio.sleep(0)
        one.repeat_if_swallowed(now + 1.2)
    await task
    assert heard == ["once", "cleaned up outside of the handler"]
    assert not one.is_overdue(now + 9) and one.is_overdue(now + 11)


async def test_a_job_that_does_not_end_is_given_up_and_tried_again(
    fast: Settings, client: Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    run = await client.enqueue(deaf)
    other = await client.enqueue(brief)
    one_slot = with_worker(fast, max_jobs=1)
    async with working(one_slot, deaf, brief) as worker:
        assert await run.result(timeout=120) == "second"
        assert await other.result(timeout=120) == "brief"
        assert worker.abandoned_tasks == 1
        assert await redis.keys("arq:in-progress:*") == []
        seen["go"].set()
        await until_true(lambda: not worker.abandoned_tasks)
        assert await run.result(timeout=120) == "second"
        assert worker.counters.complete == 2
    assert (seen["tries"], seen["ended"]) == ([1, 2], ["first"])
    assert await redis.zcard("arq:queue") == 0
    line = await redis.hgetall(f"worker:run:{run.id}")
    assert b"percent" not in line, "what it says of its progress counts no more"
    [told] = [record.getMessage() for record in caplog.records if "job abandoned" in record.getMessage()]
    assert re.search(r"reason=timeout: its slot is free.*in deaf\n.*in swallow\n +await until_set.wait", told, re.S)
    assert "in _call" not in told  # the stack begins at the job's own function
    assert "its outcome is ignored" in caplog.text


async def test_a_given_up_job_ends_as_timed_out_at_its_last_try(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(deaf)
    await redis.set(f"arq:retry:{run.id}", 1)
    async with working(fast, deaf):
        with pytest.raises(JobFailed, match=r"took longer than 0\.5 s.*did not end within 0\.2 s.*attempt 2, the last"):
            await run.result(timeout=120)
        assert await redis.hexists(keys.DEAD, run.id)
        seen["go"].set()
        await until_true(lambda: seen["ended"])
        assert not (await client.store.redis.exists(f"arq:job:{run.id}"))


@pytest.mark.parametrize("lock", [True, False])
async def test_a_given_up_walk_commits_no_batch_more(
    fast: Settings, client: Client, database: Database, lock: bool
) -> None:
    await fill_authors(database, 30)
    run = await client.enqueue(deaf_walk, lock=lock)
    async with working(fast, deaf_walk) as worker:
        await asyncio.wait_for(seen["begun"].wait(), 60)
        worker.execution(run.id).interrupt("stall")
        assert await run.result(timeout=120) == 30
        assert worker.abandoned_tasks == 1
        seen["go"].set()
        await until_true(lambda: not worker.abandoned_tasks)
    async with database.session() as session:
        rows = await session.execute(select(Author.seen, func.count()).group_by(Author.seen))
        assert [tuple(row) for row in rows] == [(1, 30)]
    [error] = seen["ended"]
    assert re.search("closed|deassociated|has ended", error), "its connection is closed, and no other job has it"


async def test_what_a_given_up_job_has_open_is_not_committed(
    fast: Settings, client: Client, database: Database
) -> None:
    run = await client.enqueue(deaf_in_transaction)
    async with working(fast, deaf_in_transaction) as worker:
        await asyncio.wait_for(seen["begun"].wait(), 60)
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
        seen["go"].set()
        await until_true(lambda: not worker.abandoned_tasks)
    assert seen["ended"] == ["FencedOut"] * 4
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Author)) == 0


async def test_a_place_among_the_limits_is_given_back_once(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(deaf_and_alone)
    async with working(fast, deaf_and_alone) as worker:
        await until_true(lambda: seen["tries"])
        worker.execution(run.id).interrupt("timeout")
        await asyncio.wait_for(seen["begun"].wait(), 60)
        seen["go"].set()
        await until_true(lambda: not worker.abandoned_tasks)
        assert await redis.zcard("worker:limit:deaf_and_alone") == 1, "it is the second try's by now"
        seen["second"].set()
        await run.result(timeout=120)
    assert await redis.keys("worker:limit:*") == []


async def test_a_drain_gives_up_what_does_not_end(
    fast: Settings, client: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime.worker._MIN_GRACE_SECONDS", 0.2)
    run = await client.enqueue(deaf_for_long)
    async with working(with_worker(fast, drain_timeout_seconds=0.05, grace_period_seconds=60), deaf_for_long) as worker:
        await until_true(lambda: seen["tries"])
    assert worker.abandoned_tasks == 1
    assert (await run.status(), await redis.get(f"arq:retry:{run.id}")) == ("waiting", None)
    assert await redis.keys("arq:in-progress:*") == []
    seen["go"].set()
    await until_true(lambda: not worker.abandoned_tasks)
    assert await run.status() == "waiting"


_DEAF = """
import asyncio
from worker import JobContext, job

@job(timeout=0.1, grace_period=0.1, max_attempts=1)
async def deaf(ctx: JobContext) -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
"""


async def test_a_process_ends_without_the_jobs_that_do_not(servers: Services, client: Client, tmp_path: Path) -> None:
    (tmp_path / "deaf_jobs.py").write_text(_DEAF)
    run = await client.enqueue("deaf")
    command = [sys.executable, "-m", "worker", "--set", 'worker.packages=["deaf_jobs"]', "run", "--burst"]
    ran = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=Path(__file__).parents[2],
        env={**servers.environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == EXIT_ABANDONED, ran.stderr
    assert "process ends abandoned_jobs=1" in ran.stderr
    with pytest.raises(JobFailed, match="abandoned"):
        await run.result(timeout=120)
