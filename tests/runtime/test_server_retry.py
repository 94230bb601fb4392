"""Repetitions of a step of the ledger end within a bound, however long each one takes."""

from __future__ import annotations

from types import SimpleNamespace

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from worker.queue.outage_log import OutageLog
from worker.runtime import server_retry
from worker.runtime.server_retry import ServerRetry, WorkerState

UNAVAILABLE = DBAPIError("SELECT 1", None, asyncpg.ConnectionDoesNotExistError("gone"))
FAILED = DBAPIError("SELECT 1", None, asyncpg.UndefinedTableError("no such table"))


class Clock:
    """Time that passes in the steps, and in the waits between them."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Step:
    """A step that fails `failures` times, each time after some seconds."""

    def __init__(self, clock: Clock, seconds: float, failures: int, error: Exception) -> None:
        self.clock = clock
        self.seconds = seconds
        self.failures = failures
        self.error = error
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        self.clock.now += self.seconds
        if self.calls <= self.failures:
            raise self.error
        return "done"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    replaced = SimpleNamespace(get_running_loop=lambda: clock, sleep=clock.sleep)
    monkeypatch.setattr(server_retry, "asyncio", replaced)
    return clock


@pytest.mark.parametrize(
    ("seconds", "calls"), [(0.0, 6), (1.0, 6), (4.0, 4), (10.0, 2), (20.0, 1)], ids=lambda value: f"{value:g}"
)
async def test_steps_that_always_fail_end_soon_after_the_limit(clock: Clock, seconds: float, calls: int) -> None:
    step = Step(clock, seconds, 99, UNAVAILABLE)
    with pytest.raises(DBAPIError):
        await ServerRetry(WorkerState("w"), OutageLog()).database(step)
    assert step.calls == calls
    assert clock.now <= server_retry._DATABASE_SECONDS + seconds + 1


async def test_a_step_that_succeeds_in_time_returns_its_result(clock: Clock) -> None:
    step = Step(clock, 1.0, 3, UNAVAILABLE)
    assert await ServerRetry(WorkerState("w"), OutageLog()).database(step) == "done"
    assert step.calls == 4


async def test_a_step_that_fails_for_another_reason_is_not_repeated(clock: Clock) -> None:
    step = Step(clock, 0.0, 99, FAILED)
    with pytest.raises(DBAPIError):
        await ServerRetry(WorkerState("w"), OutageLog()).database(step)
    assert step.calls == 1
