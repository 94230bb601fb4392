"""The last hour of each queue by the minute, in the memory of this server: one reader for all that look at it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from redis.exceptions import RedisError

from worker.cancellation import cancel_and_wait
from worker.errors import LonghaulError
from worker.web.views import HistoryView, MinuteView, OverviewView, QueueHistoryView, QueueView, WorkerView

logger = logging.getLogger("longhaul.web")

_MINUTES = 60
_SAMPLE_SECONDS = 5.0


@dataclass
class _Minute:
    at: datetime
    enqueued: int = 0
    ended: int = 0
    waiting: int = 0


@dataclass
class _Queue:
    depth: int
    minutes: deque[_Minute] = field(default_factory=lambda: deque(maxlen=_MINUTES))


class QueueHistory:
    """Samples the queues every five seconds, and keeps an hour.

    How many runs ended is the sum of what the workers count. How many were enqueued is that, and the change of the
    queue's length: a run that was enqueued and deleted between two samples is not seen.
    """

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._done: dict[tuple[str, str], int] = {}  # runs that a worker has ended, by worker and queue
        self._since: datetime | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, read: Callable[[], Awaitable[OverviewView]]) -> None:
        """Begin to sample, unless it has begun.

        Args:
            read: reads the overview.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run(read), name="web history")

    async def close(self) -> None:
        """End sampling."""
        if self._task is not None:
            await cancel_and_wait(self._task)
            self._task = None

    async def _run(self, read: Callable[[], Awaitable[OverviewView]]) -> None:
        while True:
            with contextlib.suppress(LonghaulError, RedisError, OSError):
                self.add(await read())
            await asyncio.sleep(_SAMPLE_SECONDS)

    def add(self, overview: OverviewView) -> None:
        """Add a sample."""
        ended = self._count_ended(overview.workers)
        minute = overview.at.replace(second=0, microsecond=0)
        for queue in overview.queues:
            self._add_queue(queue, minute, ended.get(queue.name, 0))
        present = {queue.name for queue in overview.queues}
        self._queues = {name: one for name, one in self._queues.items() if name in present}
        self._since = self._since or overview.at

    def _count_ended(self, workers: list[WorkerView]) -> dict[str, int]:
        """Return the runs that ended since the sample before, by queue."""
        found: dict[str, int] = {}
        done: dict[tuple[str, str], int] = {}
        for worker in workers:
            mark = f"{worker.name} {worker.started_at}"
            for queue, count in worker.done_by_queue.items():
                is_new = self._since is not None and worker.started_at is not None and worker.started_at > self._since
                before = self._done.get((mark, queue), 0 if is_new else count)
                found[queue] = found.get(queue, 0) + max(0, count - before)
                done[mark, queue] = count
        self._done = done
        return found

    def _add_queue(self, queue: QueueView, at: datetime, ended: int) -> None:
        depth = queue.waiting + queue.deferred + queue.running
        known = self._queues.setdefault(queue.name, _Queue(depth))
        if not known.minutes or known.minutes[-1].at != at:
            known.minutes.append(_Minute(at))
        minute = known.minutes[-1]
        minute.ended += ended
        minute.enqueued += max(0, depth - known.depth + ended)
        minute.waiting = queue.waiting
        known.depth = depth

    def show(self) -> HistoryView:
        """Return the last hour. A minute without a sample is null."""
        last = datetime.now(UTC).replace(second=0, microsecond=0)
        moments = [last - timedelta(minutes=ago) for ago in range(_MINUTES - 1, -1, -1)]
        queues = []
        for name, queue in self._queues.items():
            known = {one.at: one for one in queue.minutes}
            minutes = [
                MinuteView(at=one.at, enqueued=one.enqueued, ended=one.ended, waiting=one.waiting)
                if (one := known.get(at))
                else None
                for at in moments
            ]
            queues.append(QueueHistoryView(name=name, minutes=minutes))
        return HistoryView(since=self._since, queues=queues)
