"""Orders of operators: pause, cancel, pace, drain and retry, as plain sets and a hash in Redis.

`SADD worker:paused <run id | job name | queue | *>`, `SREM` to go on; `SADD worker:cancelled <run id>`;
`HSET worker:pace <run id | job name | *> <rows a second>`, `HDEL` to take it back; `SADD worker:drain <worker>`;
`SADD worker:retry <run id>`. The last two are done once: who has done one removes it. Stock arq clients abort with the
sorted set `arq:abort`, which counts as a cancel.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.queue import keys
from worker.queue.invalidations import InvalidationListener
from worker.queue.outage_log import OutageLog

logger = logging.getLogger("longhaul.orders")

Order = Literal["pause", "cancel"]

#: The keys of all orders: those that a watch has to tell of.
KEYS = frozenset({keys.PAUSED, keys.CANCELLED, keys.ABORT, keys.PACE, keys.DRAINED, keys.RETRIED})
#: Longest age, in seconds, of what a batch boundary looks at.
FRESH_SECONDS = 0.1
_RETRY_SECONDS = 1.0
_READING = "orders cannot be read"


class OperatorState:
    """What operators want, as last read. A walk goes on with the last known orders while Redis is away."""

    #: Whether stock arq clients may abort (`allow_abort_jobs` of arq's workers).
    heeds_aborts = True

    def __init__(
        self, redis: Redis, watch: InvalidationListener | None = None, outage: OutageLog | None = None
    ) -> None:
        self._redis = redis
        self._watch = watch
        self._stale = True
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._failing = False
        self._outage = outage or OutageLog()
        self.paused: frozenset[str] = frozenset()
        self.cancelled: frozenset[str] = frozenset()
        self.paces: dict[str, float] = {}
        self.drained: frozenset[str] = frozenset()
        self.retried: frozenset[str] = frozenset()

    def changed(self) -> None:
        """Note that somebody has written an order."""
        self._stale = True

    @property
    def known(self) -> bool:
        """Whether what was read is what Redis has: where a watch tells of changes, or for a moment where none does."""
        if self._watch is not None and self._watch.active:
            return not self._stale
        return time.monotonic() - self._read_at < FRESH_SECONDS

    @property
    def must_ask(self) -> bool:
        """Whether nobody tells of changes, so that who wants to know has to ask; not while Redis is away."""
        return not self._failing and (self._watch is None or not self._watch.active) and not self.known

    async def refresh(self, *, now: bool = False) -> None:
        """Read the orders again unless they are known.

        Args:
            now: read them in any case.
        """
        if self.known and not now:
            return
        async with self._reading:  # who comes while another one reads waits for that answer
            if now or not self.known:
                await self._read()

    async def _read(self) -> None:
        began = time.monotonic()
        commands = [
            ("SMEMBERS", keys.PAUSED),
            ("SMEMBERS", keys.CANCELLED),
            ("ZRANGE", keys.ABORT, 0, -1),
            ("HGETALL", keys.PACE),
            ("SMEMBERS", keys.DRAINED),
            ("SMEMBERS", keys.RETRIED),
        ]
        try:
            if self._watch is not None and self._watch.active:
                self._stale = False  # before the answer: what is written while it comes makes it stale again
                paused, cancelled, aborted, flat, drained, retried = await self._watch.read(*commands)
                paces = dict(zip(flat[::2], flat[1::2], strict=True))
            else:
                pipeline = self._redis.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                paused, cancelled, aborted, paces, drained, retried = await pipeline.execute()
        except RedisError as error:
            self._stale = True
            self._read_at = time.monotonic() + _RETRY_SECONDS
            self._failing = True
            self._outage.failed(_READING, error)
            return
        self._failing = False
        self._outage.answered(_READING)
        self._read_at = began
        self.paused = _names(paused)
        self.cancelled = _names([*cancelled, *(aborted if self.heeds_aborts else ())])
        self.drained = _names(drained)
        self.retried = _names(retried)
        self.paces = {name.decode(): pace for name, raw in paces.items() if (pace := _positive(raw)) is not None}

    def holds(self, queue: str) -> bool:
        """Return whether nothing is to be taken from a queue."""
        return not self.paused.isdisjoint((queue, keys.ALL))

    def of(self, run_id: str, job: str, queue: str) -> Order | None:
        """Return what is wanted of a run."""
        if run_id in self.cancelled:
            return "cancel"
        if self.paused and not self.paused.isdisjoint((run_id, job, queue, keys.ALL)):
            return "pause"
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that is wanted of a run: its own, its job's, or that of all."""
        return next((self.paces[name] for name in (run_id, job, keys.ALL) if name in self.paces), None)


def _names(members: Iterable[bytes]) -> frozenset[str]:
    return frozenset(member.decode(errors="replace") for member in members)


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
