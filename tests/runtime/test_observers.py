"""`Observers` passes every event on, and one observer that fails does not stop the others."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.waiting import until_true
from worker.batch import Progress
from worker.runtime.observer import Observer, Observers, RunInfo
from worker.runtime.supervision import end_tasks

RUN = RunInfo("r1", "walk", "arq:queue", 1, 0)
NOW = datetime.now(UTC)
EVENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "worker_started": ((), {}),
    "worker_stopped": ((), {}),
    "started": ((RUN,), {}),
    "durable": ((RUN,), {"attempt": 1, "takeovers": 0, "rows": 0}),
    "batch_began": ((RUN,), {}),
    "walk_ended": ((RUN,), {"failed": True}),
    "progressed": ((RUN, Progress("1-chunks", "chunks", 1, None, None, 1, 1, 0.1, 1)), {"rows": 1}),
    "throttled": ((RUN, "too fast"), {"since": NOW, "until": None, "kind": "pace"}),
    "stalled": ((RUN, 600.0), {}),
    "requeued": ((RUN, "waiting"), {"error": "no", "delay": 1.0, "how": "failed"}),
    "ended": ((RUN, "succeeded"), {"error": None, "result": 3}),
    "lost": ((RUN,), {}),
    "cron_fired": (("walk",), {"run_id": "r1", "late_seconds": 0.1}),
}


def methods(of: type) -> set[str]:
    """Return the public methods of a class."""
    return {name for name, _ in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")}


def make_recorder(heard: list[Any], *names: str) -> Observer:
    """Return an observer that records some events."""

    def record(name: str) -> Any:
        return lambda self, *arguments, **options: heard.append((name, arguments, options))

    return type("Recorder", (Observer,), {name: record(name) for name in names})()  # type: ignore[no-any-return]


def test_every_event_reaches_every_observer_in_order() -> None:
    assert methods(Observer) == EVENTS.keys() | {"run", "close"}
    assert all(name in vars(Observers) for name in EVENTS)
    one, other = list[Any](), list[Any]()
    observers = Observers([make_recorder(one, *EVENTS), Observer(), make_recorder(other, *EVENTS)])
    for name, (arguments, options) in EVENTS.items():
        getattr(observers, name)(*arguments, **options)
    expected = [(name, arguments, options) for name, (arguments, options) in EVENTS.items()]
    assert one == other == expected


class Failing(Observer):
    """Fails at its end, and counts how often it was started."""

    def __init__(self) -> None:
        self.starts = 0

    async def run(self) -> None:
        """Fail."""
        self.starts += 1
        raise ValueError("no")

    async def close(self) -> None:
        """Fail."""
        raise ValueError("not closed")


class Closing(Observer):
    """Records that it runs and that it was closed."""

    def __init__(self) -> None:
        self.runs = self.closed = False

    async def run(self) -> None:
        """Run until cancelled."""
        self.runs = True
        try:
            await super().run()
        finally:
            self.runs = False

    async def close(self) -> None:
        """Record it."""
        self.closed = True


class Swallowing(Observer):
    """Swallows its first cancellation, as `asyncio.wait_for` of CPython 3.11 may."""

    def __init__(self) -> None:
        self.swallowed = 0

    async def run(self) -> None:
        """Run until the second cancellation."""
        try:
            await super().run()
        except asyncio.CancelledError:
            self.swallowed += 1
            await super().run()


async def test_each_cancellation_reaches_the_observers() -> None:
    swallowing, closing = Swallowing(), Closing()
    task = asyncio.create_task(Observers([closing, swallowing]).run())
    await until_true(lambda: closing.runs)
    assert await end_tasks([task], seconds=30) == set()
    assert task.cancelled()
    assert swallowing.swallowed == 1
    assert not closing.runs


async def test_an_observer_that_fails_is_started_again_beside_the_others() -> None:
    failing, closing = Failing(), Closing()
    observers = Observers([failing, closing])
    task = asyncio.create_task(observers.run())
    await until_true(lambda: failing.starts >= 2)
    assert closing.runs
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not closing.runs
    with pytest.raises(ValueError, match="not closed"):
        await observers.close()
    assert closing.closed
