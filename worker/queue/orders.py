"""Orders of operators: pause, cancel and pace, as plain sets and a hash in Redis.

`SADD worker:paused <run id | job name | *>`, `SREM` to go on; `SADD worker:cancelled <run id>`; `HSET worker:pace
<run id | job name | *> <rows a second>`, `HDEL` to take it back. Stock arq clients
abort with the sorted set `arq:abort`, which counts as a cancel.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.queue import keys

logger = logging.getLogger("worker.orders")

Order = Literal["pause", "cancel"]

#: Longest age, in seconds, of what a batch boundary looks at.
FRESH_SECONDS = 0.1
_RETRY_SECONDS = 1.0


class Orders:
    """What operators want, as last read. A walk goes on with the last known orders while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._failing = False
        self.paused: frozenset[str] = frozenset()
        self.cancelled: frozenset[str] = frozenset()
        self.paces: dict[str, float] = {}

    async def refresh(self, *, older_than: float = FRESH_SECONDS) -> None:
        """Read the orders again unless they are younger than that."""
        async with self._reading:  # who comes while another one reads waits for that answer
            if time.monotonic() - self._read_at >= older_than:
                await self._read()

    async def _read(self) -> None:
        began = time.monotonic()
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.smembers(keys.PAUSED)
        pipeline.smembers(keys.CANCELLED)
        pipeline.zrange(keys.ABORT, 0, -1)
        pipeline.hgetall(keys.PACE)
        try:
            paused, cancelled, aborted, paces = await pipeline.execute()
        except RedisError as error:
            self._read_at = time.monotonic() + _RETRY_SECONDS
            if not self._failing:
                logger.warning("orders cannot be read: %s", error)
            self._failing = True
            return
        self._failing = False
        self._read_at = began
        self.paused = frozenset(member.decode() for member in paused)
        self.cancelled = frozenset(member.decode() for member in (*cancelled, *aborted))
        self.paces = {name.decode(): pace for name, raw in paces.items() if (pace := _positive(raw)) is not None}

    def of(self, run_id: str, job: str) -> Order | None:
        """Return what is wanted of a run."""
        if run_id in self.cancelled:
            return "cancel"
        if self.paused and not self.paused.isdisjoint((run_id, job, keys.ALL)):
            return "pause"
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that is wanted of a run: its own, its job's, or that of all."""
        return next((self.paces[name] for name in (run_id, job, keys.ALL) if name in self.paces), None)


def _positive(raw: bytes) -> float | None:
    """Return a number that an operator has written; None, with a word in the log, for what is none."""
    try:
        value = float(raw)
    except ValueError:
        value = math.nan
    if value > 0 and math.isfinite(value):
        return value
    logger.warning("worker:pace has %r, which is no number of rows a second", raw)
    return None
