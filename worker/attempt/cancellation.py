"""The interruption of a job's own code: said once, again where it was swallowed, and at last overdue."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from worker.attempt.task_stack import awaits, holds_cancellation

Reason = Literal["lost", "drain", "cancel", "timeout", "stall"]

_AGAIN_SECONDS = 1.0


class JobCancellation:
    """One cancellation of a task.

    `asyncio.wait_for` of CPython 3.11, and asyncpg's copy of it, which pools use, swallow a cancellation that comes
    together with what they wait for: the job goes on as if nothing were. So where one of them stood, it is said again
    after a second. But never to a task that has heard it, which may be cleaning up: see `holds_cancellation`.

    Args:
        task: runs the job's own code.
        reason: why.
        now: the loop's time.
        grace: seconds that the code has for its end.

    Attributes:
        reason: why.
        grace: seconds.
    """

    def __init__(self, task: asyncio.Task[Any], reason: Reason, *, now: float, grace: float) -> None:
        self.reason: Reason = reason
        self.grace = grace
        self._task = task
        self._said_at = self._began_at = now
        self._may_be_swallowed = False
        self._say(now)

    def look(self, now: float) -> None:
        """Say it again where it was swallowed; called ten times a second."""
        if not self._may_be_swallowed:
            return
        if holds_cancellation(self._task) or not self._task.cancelling():
            self._may_be_swallowed = False
        elif now - self._said_at >= _AGAIN_SECONDS:
            self._say(now)

    def is_overdue(self, now: float) -> bool:
        """Whether the code has not ended in its time."""
        return now - self._began_at > self.grace

    def _say(self, now: float) -> None:
        self._said_at = now
        self._may_be_swallowed = awaits(self._task, "wait_for")
        self._task.cancel(self.reason)
