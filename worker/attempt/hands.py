"""The helper runs of an attempt, as its walks see them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from worker.attempt.boundary import Boundary
from worker.attempt.control import AttemptControl
from worker.batch.throttle import Wait

#: Shortest and longest seconds between two looks at the ranges of other hands, and their share of the wait so far.
_LEAST_WAIT, _LONGEST_WAIT, _SHARE_OF_WAIT = 0.01, 0.25, 0.1


class Hands:
    """Starts helper runs, and waits for them; see `worker.batch.walk_host.WalkHands`.

    Args:
        control: connects the attempt to its worker.
        boundary: the boundary between two batches, whose throttles share the pace of a walk among its hands.
    """

    def __init__(self, control: AttemptControl, boundary: Boundary) -> None:
        self._control = control
        self._boundary = boundary
        self._started: set[str] = set()
        self._waits_since: datetime | None = None

    async def start(self, step: str, hands: int, fence: int) -> None:
        """Enqueue helper runs for a walk, once an attempt."""
        if hands > 1 and step not in self._started:
            self._started.add(step)
            await self._control.start_hands(step, range(2, hands + 1), fence)

    async def is_alive(self, run_id: str) -> bool:
        """Return whether a worker holds the lease of a helper run."""
        return await self._control.is_alive(run_id)

    @property
    def pace(self) -> float | None:
        """The rows per second of this hand, a part of the pace of the walk; None without a pace."""
        pace = self._boundary.rows_per_second
        return None if pace is None else pace / self._boundary.hands

    def note(self, hands: int) -> None:
        """Record the number of hands, which share the pace of the walk."""
        self._boundary.hands = hands

    def watch(self, look: Callable[[], Awaitable[None]]) -> None:
        """Call a function now and then while a throttle holds this hand, until the walk ends."""
        self._boundary.watch = look

    async def wait(self, ranges: int) -> None:
        """Wait a moment for ranges that other hands walk, and report the wait."""
        now = datetime.now(UTC)
        self._waits_since = self._waits_since or now
        so_far = (now - self._waits_since).total_seconds()
        wait = Wait(f"other hands walk the last {ranges} ranges", kind="other hands")
        self._control.throttled(wait, self._waits_since)
        await asyncio.sleep(min(_LONGEST_WAIT, max(_LEAST_WAIT, so_far * _SHARE_OF_WAIT)))
        self._boundary.note_wait("other hands")

    def end_wait(self) -> None:
        """Report that the walk continues, if it has waited."""
        if self._waits_since is not None:
            self._control.throttled(None, self._waits_since)
            self._waits_since = None
