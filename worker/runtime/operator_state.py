"""Commands of operators, as last read: plain sets and a hash in Redis.

| command | effect |
| --- | --- |
| `SADD worker:paused <run id, job, queue or *>` | pause; `SREM` resumes |
| `SADD worker:cancelled <run id>` | cancel |
| `HSET worker:pace <run id, job or *> <rows a second>` | limit the pace; `HDEL` takes the limit back |
| `SADD worker:drain <worker>` | drain a worker, which then removes the command |
| `SADD worker:retry <run id>` | retry a run; the worker that does it removes the command |

Stock arq clients abort with the sorted set `arq:abort`, which counts as a cancel.
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

logger = logging.getLogger("longhaul.operators")

Order = Literal["pause", "cancel"]

#: The keys of all commands: the listener has to hear of their changes.
KEYS = frozenset({keys.PAUSED, keys.CANCELLED, keys.ABORT, keys.PACE, keys.DRAINED, keys.RETRIED})
#: Longest age, in seconds, of what a batch boundary looks at.
FRESH_SECONDS = 0.1
_RETRY_SECONDS = 1.0
_READING = "operator commands cannot be read"


class OperatorState:
    """What operators want, as last read. While Redis is away, walks continue with the last known commands.

    Args:
        redis: to read them where no listener is active.
        listener: hears of their changes; None for none.
        outage: logs that Redis is away.
        obeys_aborts: whether stock arq clients may abort (`allow_abort_jobs` of arq's workers).
    """

    def __init__(
        self,
        redis: Redis,
        listener: InvalidationListener | None = None,
        outage: OutageLog | None = None,
        *,
        obeys_aborts: bool = True,
    ) -> None:
        self._redis = redis
        self._listener = listener
        self._obeys_aborts = obeys_aborts
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
        """Note that a command was written."""
        self._stale = True

    @property
    def known(self) -> bool:
        """Whether what was read is current: as long as a listener hears of no change, or for a moment without one."""
        if self._listener is not None and self._listener.active:
            return not self._stale
        return time.monotonic() - self._read_at < FRESH_SECONDS

    @property
    def must_ask(self) -> bool:
        """Whether the commands have to be read again before use, for want of a listener; not while Redis is away."""
        return not self._failing and (self._listener is None or not self._listener.active) and not self.known

    async def refresh(self, *, now: bool = False) -> None:
        """Read the commands again unless they are known.

        Args:
            now: read them in any case.
        """
        if self.known and not now:
            return
        async with self._reading:  # a caller that comes while they are read shares the answer
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
            if self._listener is not None and self._listener.active:
                self._stale = False  # before the answer: what is written while it comes makes it stale again
                paused, cancelled, aborted, flat, drained, retried = await self._listener.read(*commands)
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
        self.cancelled = _names([*cancelled, *(aborted if self._obeys_aborts else ())])
        self.drained = _names(drained)
        self.retried = _names(retried)
        self.paces = {name.decode(): pace for name, raw in paces.items() if (pace := _positive(raw)) is not None}

    def is_queue_paused(self, queue: str) -> bool:
        """Tell whether nothing is to be claimed from a queue."""
        return not self.paused.isdisjoint((queue, keys.ALL))

    def find_order(self, run_id: str, job: str, queue: str) -> Order | None:
        """Return the command for a run; None where there is none."""
        if run_id in self.cancelled:
            return "cancel"
        if self.paused and not self.paused.isdisjoint((run_id, job, queue, keys.ALL)):
            return "pause"
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that a run is limited to: its own, its job's, or that of all runs."""
        return next((self.paces[name] for name in (run_id, job, keys.ALL) if name in self.paces), None)


def _names(members: Iterable[bytes]) -> frozenset[str]:
    return frozenset(member.decode(errors="replace") for member in members)


def _positive(raw: bytes) -> float | None:
    """Return the number that an operator has written; None, and a line in the log, if it is no number."""
    try:
        value = float(raw)
    except ValueError:
        value = math.nan
    if value > 0 and math.isfinite(value):
        return value
    logger.warning("command ignored key=%s value=%r: it is no number of rows a second", keys.PACE, raw)
    return None
