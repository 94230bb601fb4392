"""A blocked event loop is logged after a second, with the stack of the code that blocks it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from redis.asyncio import Redis

from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.runtime import leases
from worker.runtime.leases import BlockedLoopLog

pytestmark = pytest.mark.usefixtures("database")


def blocked_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "longhaul.leases" and record.getMessage().startswith("event loop blocked")
    ]


def sleep_until_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Block the thread until the log has a line about it."""
    ends_at = time.monotonic() + 30
    while not blocked_lines(caplog) and time.monotonic() < ends_at:
        time.sleep(0.2)


async def test_worker_logs_a_job_that_blocks_its_loop_with_the_stack(
    fast: Settings, client: Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    @job
    async def block(ctx: JobContext) -> float:
        """Block the loop until that is logged."""
        began = time.monotonic()
        sleep_until_logged(caplog)
        return time.monotonic() - began

    async with working(with_worker(fast, lease_seconds=30.0), block):
        run = await client.enqueue(block.options(id="b1"))
        seconds = await run.result(timeout=120)
    [line] = blocked_lines(caplog)
    assert seconds >= 0.7
    assert "running=b1" in line and "in sleep_until_logged" in line and "time.sleep(0.2)" in line


async def test_worker_does_not_log_a_loop_that_waits(
    fast: Settings, client: Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    @job
    async def wait(ctx: JobContext) -> None:
        """Wait for longer than the limit."""
        for _ in range(30):
            await asyncio.sleep(0.05)

    async with working(fast, wait):
        await (await client.enqueue(wait)).result(timeout=120)
    lines = blocked_lines(caplog)
    assert [line for line in lines if "in wait" in line] == []


class Clock:
    """The clocks that the log reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cpu = 100.0, 0.0
        monkeypatch.setattr(leases.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(leases.time, "process_time", lambda: self.cpu)

    def block(self, log: BlockedLoopLog, seconds: float, step: float = 0.25) -> None:
        """Pass a time without a heartbeat, in which the thread checks."""
        pulse, ends_at = self.now, self.now + seconds
        while self.now < ends_at:
            self.now += step
            log.check(pulse)


def test_log_has_one_line_a_block_and_a_minute_for_one_stack(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stack = {"text": "one"}
    monkeypatch.setattr(leases, "format_thread_stack", lambda _: stack["text"])
    clock = Clock(monkeypatch)
    log = BlockedLoopLog(threading.get_ident())
    clock.block(log, 0.75)
    assert blocked_lines(caplog) == []
    for _ in range(20):  # twenty blocks of two seconds
        clock.block(log, 2)
    assert len(blocked_lines(caplog)) == 1
    stack["text"] = "another"
    clock.block(log, 2)
    assert len(blocked_lines(caplog)) == 2 and "omitted=19" in blocked_lines(caplog)[-1]
    clock.now += 60
    log.check(clock.now)
    clock.block(log, 2)
    assert len(blocked_lines(caplog)) == 3


def test_log_has_no_line_for_a_frozen_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    log = BlockedLoopLog(threading.get_ident())
    pulse = clock.now
    clock.now += 30  # neither the loop nor the thread ran
    log.check(pulse)
    assert blocked_lines(caplog) == []


def test_log_has_a_line_for_code_that_held_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    log = BlockedLoopLog(threading.get_ident())
    pulse = clock.now
    clock.now += 3  # a regular expression
    clock.cpu += 3
    log.check(pulse)
    assert len(blocked_lines(caplog)) == 1


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Capture the lines."""
    caplog.set_level(logging.WARNING, logger="longhaul.leases")
