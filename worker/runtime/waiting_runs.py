"""The runs that wait for the slots of this worker: asked by walks that have had theirs for long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.queue import keys
from worker.queue.scripts import script
from worker.runtime.fetcher import Fetcher
from worker.runtime.server_retry import WorkerState

#: Seconds between two looks at Redis for the walks of one queue, priority and limit.
_LOOK_SECONDS = 0.5
#: Seconds for which a run has been due before it counts as waiting: a worker with a free slot claims it sooner.
_PATIENCE_SECONDS = 0.5
#: Most runs that are counted, and so most walks that give way between two looks.
_MOST = 20
_MOST_KINDS = 1_000


class WaitingRuns:
    """Decides whether a walk is to give its slot to a run that waits for it.

    Args:
        redis: the connection to the queue.
        fetcher: the queues that this worker serves.
        state: the state of the worker, with its free slots.
        queue_limits: most jobs of a queue that run at once.
    """

    def __init__(self, redis: Redis, fetcher: Fetcher, state: WorkerState, queue_limits: Mapping[str, int]) -> None:
        self._fetcher = fetcher
        self._state = state
        self._queue_limits = queue_limits
        self._count = redis.register_script(script("count_waiting"))
        self._lock = asyncio.Lock()
        #: For each kind of walk: the time of the last look, and how many walks may still give way.
        self._found: dict[tuple[str, int, str, bool], tuple[float, int]] = {}

    async def take_one(self, queue: str, priority: int, place: str | None) -> bool:
        """Return whether a run waits for which no other walk has given way.

        Args:
            queue: the queue of the walk.
            priority: its priority.
            place: the line for a place under the limit of its job; None without a limit.
        """
        has_slot = self._state.free_slots > 0
        if has_slot and place is None:
            return False
        kind = queue, priority, place or "", has_slot
        async with self._lock:
            now = asyncio.get_running_loop().time()
            looked_at, remaining = self._found.get(kind, (-math.inf, 0))
            if now - looked_at >= _LOOK_SECONDS:
                remaining = await self._look(queue, priority, place, counts_slots=not has_slot)
                looked_at = now
            if len(self._found) >= _MOST_KINDS:
                self._found.clear()
            self._found[kind] = looked_at, max(0, remaining - 1)
            return remaining > 0

    async def _look(self, queue: str, priority: int, place: str | None, *, counts_slots: bool) -> int:
        queues = [queue, *(one for one in self._fetcher.competing_queues(queue) if one != queue)]
        values: list[Any] = [keys.IN_PROGRESS, _MOST, round(_PATIENCE_SECONDS * 1000), priority]
        values += [keys.PRIORITIES, keys.PRIORITY, keys.RUNNING, keys.LIMITS, int(counts_slots)]
        values += [self._queue_limits.get(one, 0) for one in queues]
        try:
            return int(await cast(Awaitable[int], self._count(keys=[place or queue, *queues], args=values)))
        except RedisError:
            return 0  # the walk keeps its slot during an outage
