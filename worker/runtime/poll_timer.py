"""When a worker has to look at its queues: at the first due time, on word of a change, and now and then in any case."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from worker.queue.invalidations import InvalidationListener

#: Longest wait for word of a change: should it have been lost, this is what it costs.
_LONGEST_SLEEP_SECONDS = 5.0


class PollTimer:
    """The wait of a worker that has nothing to do.

    Args:
        watch: tells of changes.
        served: returns the queues that the worker serves now.
        poll_interval_seconds: between two looks where nobody tells of changes.

    Attributes:
        may_be_due: whether it is worth to ask for jobs.
    """

    def __init__(
        self, watch: InvalidationListener, served: Callable[[], Sequence[str]], poll_interval_seconds: float
    ) -> None:
        self.may_be_due = True
        self._watch = watch
        self._served = served
        self._poll_interval_seconds = poll_interval_seconds
        self._wake = asyncio.Event()
        #: The loop's time at which the first job of the queues is due; None where that has to be asked.
        self._head_at: float | None = None
        self._changes = 0
        #: AckBatcher, one after the other, that took nothing though something was due.
        self._barren = 0

    def wake(self) -> None:
        """End the wait."""
        self._wake.set()

    def queues_changed(self) -> None:
        """Hear that a queue was written, or that others are served: what is due first may be another job."""
        self._head_at = None
        self._changes += 1

    def turned(self, taken: int) -> None:
        """Hear how many jobs a turn has taken."""
        self._barren = 0 if taken else self._barren + 1

    async def wait(self, slots: int) -> None:
        """Wait until something is due, has ended, or was ordered.

        Args:
            slots: jobs that could be taken; for 0, nothing that is due ends the wait.
        """
        self._wake.clear()
        if not self._watch.active:
            await self._pause(self._poll_interval_seconds)
            self.may_be_due = True
            return
        if not slots:
            await self._pause(_LONGEST_SLEEP_SECONDS)
            return
        loop = asyncio.get_running_loop()
        if self._head_at is None:
            left = await self._time_to_head()
            if left is None:
                return
            self._head_at = loop.time() + left
        left = self._head_at - loop.time()
        if left > 0:
            self._barren = 0
            await self._pause(min(left, _LONGEST_SLEEP_SECONDS))
        elif self._barren > 1:
            # A worker of stock arq has it: there, what runs stays due. Word of a change ends the pause.
            await self._pause(self._poll_interval_seconds)
        if self._head_at is not None and self._head_at <= loop.time():
            self.may_be_due = True
        if not self._wake.is_set():
            self._head_at = None  # by then it is another one; and word of a change may have been lost

    async def _time_to_head(self) -> float | None:
        """Return the seconds until the first job is due; None where that has changed meanwhile, or nobody answers."""
        changes = self._changes
        try:
            heads = [("ZRANGE", queue, 0, 0, "WITHSCORES") for queue in self._served()]
            [now, *found] = await self._watch.read(("TIME",), *heads)
        except RedisError:
            return None  # the watch is lost: polling from now on
        if changes != self._changes:
            return None
        first = min((float(head[1]) for head in found if head), default=math.inf)
        return first / 1000 - int(now[0]) - int(now[1]) / 1e6

    async def _pause(self, seconds: float) -> None:
        """Wait to be woken, or for the time."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
