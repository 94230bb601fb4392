"""Timeouts of plain functions, which run in threads."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest

from tests.attempt.deaf_jobs import (
    nothing_seen,  # noqa: F401  (used by each test)
    seen,
)
from tests.support.waiting import until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, JobInterrupted, Settings, job

pytestmark = pytest.mark.usefixtures("database")


@job(timeout=0.1, max_attempts=1)
def busy_thread(ctx: JobContext) -> None:
    """Compute until it is interrupted, and clean up."""
    try:
        while True:
            pass
    except JobInterrupted:
        seen["cleaned"].append(threading.current_thread().name)
        raise


@job(timeout=0.1, max_attempts=1)
def stubborn_thread(ctx: JobContext) -> str:
    """Return a partial result when interrupted."""
    try:
        while True:
            pass
    except JobInterrupted:
        return "a part"


@job(timeout=0.1, grace_period=0.1, max_attempts=1)
def deaf_thread(ctx: JobContext) -> None:
    """Wait in a call that no exception can interrupt."""
    seen["thread"].wait()
    seen["ended"].append("thread")


@job
def brief_thread(ctx: JobContext) -> int:
    """Return at once."""
    return threading.get_ident()


async def test_a_thread_is_interrupted_and_can_clean_up(fast: Settings, client: Client) -> None:
    run = await client.enqueue(busy_thread)
    other = await client.enqueue(stubborn_thread)
    async with working(with_worker(fast, max_threads=2), busy_thread, stubborn_thread, brief_thread):
        with pytest.raises(JobFailed, match=r"took longer than 0\.1 s"):
            await run.result(timeout=120)
        assert await other.result(timeout=120) == "a part"
        after = await client.enqueue_many(brief_thread, [{}] * 20)
        for one in after:  # the next calls in its thread get no exception
            assert await one.result(timeout=120)
    assert seen["cleaned"] == ["job"]


@pytest.mark.skipif(
    sys.gettrace() is not None and sys.version_info < (3, 12),
    reason="Python 3.11 hangs in a traced function while another thread has an exception to receive (make coverage)",
)
async def test_a_thread_that_does_not_end_is_left_and_its_place_is_anothers(
    fast: Settings, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    run = await client.enqueue(deaf_thread)
    async with working(with_worker(fast, max_threads=1), deaf_thread, brief_thread) as worker:
        with pytest.raises(JobFailed, match=r"did not end within 0\.1 s of that: abandoned"):
            await run.result(timeout=120)
        other = await client.enqueue(brief_thread)
        assert await other.result(timeout=120)
        assert worker.abandoned_tasks == 1 and not seen["ended"]
        seen["thread"].set()
        await until_true(lambda: not worker.abandoned_tasks)
        again = [await client.enqueue(brief_thread) for _ in range(3)]
        assert len({await one.result(timeout=120) for one in again}) == 1, "one thread again"
    assert re.search(r"Its thread cannot be ended.*in deaf_thread\n +seen\[.thread.\]\.wait", caplog.text, re.S)


TRACED = """
import sys, threading, time
from worker.attempt.threads import ThreadPool
from worker.errors import JobInterrupted

begun, interrupted = threading.Event(), threading.Event()

def swallow():
    begun.set()
    try:
        while True:
            pass
    except JobInterrupted:
        interrupted.set()

pool = ThreadPool(1)
assert pool.start(lambda: 7).future.result() == 7
call = pool.start(swallow)
begun.wait()
call.interrupt()
interrupted.wait()
assert call.future.result() is None
assert pool.start(lambda: 8).future.result() == 8, "the interruption hit the next call"
sys.settrace(lambda *_: None)
(lambda: None)()
print("traced")
"""


def test_a_call_in_a_thread_leaves_no_check_for_exceptions_behind() -> None:
    # Python 3.11 hangs at the first function that it traces while it looks for an exception that is not there.
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "traced\n", done.stderr
