"""Cancels a job's own code: delivers the cancellation once, and repeats it only if it was swallowed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Literal

from worker.attempt.task_stack import get_code, iterate_awaited

Reason = Literal["lost", "drain", "cancel", "timeout", "stall"]

_REPEAT_SECONDS = 1.0


class JobCancellation:
    """One cancellation of the task that runs a job.

    `asyncio.wait_for` of CPython 3.11 swallows a cancellation that arrives together with the awaited result: the job
    then continues as if nothing had happened. So if the task was suspended in a `wait_for`, the cancellation is
    repeated after a second, but never to a task that has received it and may be cleaning up; see `holds_cancellation`.

    Args:
        task: runs the job's own code.
        reason: reason for the cancellation.
        now: the event loop's time.
        grace: seconds within which the code must end.

    Attributes:
        reason: reason for the cancellation.
        grace: seconds within which the code must end.
    """

    def __init__(self, task: asyncio.Task[Any], reason: Reason, *, now: float, grace: float) -> None:
        self.reason: Reason = reason
        self.grace = grace
        self._task = task
        self._began_at = self._sent_at = now
        self._may_be_swallowed = False
        self._send(now)

    def repeat_if_swallowed(self, now: float) -> None:
        """Repeat the cancellation if it was swallowed; called ten times per second."""
        if not self._may_be_swallowed:
            return
        if holds_cancellation(self._task) or not self._task.cancelling():
            self._may_be_swallowed = False
        elif now - self._sent_at >= _REPEAT_SECONDS:
            self._send(now)

    def is_overdue(self, now: float) -> bool:
        """Return whether the code has not ended within its grace."""
        return now - self._began_at > self.grace

    def _send(self, now: float) -> None:
        self._sent_at = now
        self._may_be_swallowed = awaits(self._task, "wait_for")
        self._task.cancel(self.reason)


def holds_cancellation(task: asyncio.Task[Any]) -> bool:
    """Return whether a suspended task has received a cancellation and is still handling it.

    A coroutine that is suspended in an `except` or `finally` clause, or in the exit of an `async with`, holds the
    exception that it handles: the garbage collector reports it as one of the coroutine's references.
    """
    awaited = iterate_awaited(task)
    return any(isinstance(value, asyncio.CancelledError) for one in awaited for value in gc.get_referents(one))


def awaits(task: asyncio.Task[Any], function: str) -> bool:
    """Return whether a suspended task awaits a function of that name."""
    return any(code is not None and code.co_name == function for code in map(get_code, iterate_awaited(task)))
