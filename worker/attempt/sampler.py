"""Samples of a walk for `worker report`: how far it is, and what its time goes to.

The time of a batch is noted at each boundary, which costs two readings of the clock. A sample is stored every second at
first, and less often the longer the walk takes. The ledger keeps at most 500 samples of a step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import suppress

from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from worker.db.engine import Database
from worker.errors import LonghaulError, format_error
from worker.job.propagation import AttemptFields
from worker.ledger import OwnedRun

logger = logging.getLogger("longhaul.jobs")

_FIRST_SECONDS = 0.2
_MIN_SECONDS = 1.0
_SHARE = 1 / 250  # of the time of the walk so far
_PROBE_SECONDS = 1.0
_STORE_SECONDS = 1.0
_LOST = (SQLAlchemyError, PostgresError, InterfaceError, OSError, LonghaulError)
_WAITS_FOR_LOCK = text(
    "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_catalog.pg_stat_activity WHERE pid = :pid"
)


class Sampler:
    """Notes what the time of one attempt goes to.

    Args:
        database: The database of the worker.
        fields: The attempt, with the name of its current step.
    """

    def __init__(self, database: Database, fields: AttemptFields) -> None:
        self._fields = fields
        self._database = database
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._began_at = self._at = self._stored_at = time.monotonic()
        self._step: str | None = None
        self._is_working = False
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Note that a batch has ended, and with it the work."""
        if self._timer is not None:
            self._timer.cancel()
        if self._probe is not None:
            self._probe.cancel()
        self._timer = self._probe = None
        if self._is_working:
            self._add("work")
        self._is_working = False

    async def begin_wait(self, run: OwnedRun) -> None:
        """Note that a batch has ended, and that the next one may have to wait. Store the rest of another step."""
        self.stop()
        if self._fields.step != self._step:
            await self.flush(run)
            self._seconds.clear()
            self._step = self._fields.step
        self._at = time.monotonic()

    def note_wait(self, reason: str) -> None:
        """Note the time since the last note as a wait."""
        self._add(reason)

    async def begin_batch(self, run: OwnedRun, *, is_walk: bool) -> None:
        """Note that a batch or another step begins, and store a sample if that is due.

        The time of a step without batches is that between its beginning and its end in the ledger.
        """
        now = time.monotonic()
        first = self._stored_at == self._began_at
        due = _FIRST_SECONDS if first else max(_MIN_SECONDS, (now - self._began_at) * _SHARE)
        if now - self._stored_at >= due:
            await self._store(run)
        self._is_working, self._at = is_walk, time.monotonic()
        if is_walk and not self._database.pooled:
            self._timer = asyncio.get_running_loop().call_later(_PROBE_SECONDS, self._start_probe, run)

    async def flush(self, run: OwnedRun) -> None:
        """Store what was noted since the last sample, because the attempt or the walk ends, unless it is little."""
        if sum(self._seconds.values()) >= _FIRST_SECONDS:
            await self._store(run)

    def _start_probe(self, run: OwnedRun) -> None:
        self._probe = asyncio.ensure_future(self._look_for_locks(run))

    def _add(self, reason: str) -> None:
        now = time.monotonic()
        self._seconds[reason] += now - self._at
        self._at = now

    async def _store(self, run: OwnedRun) -> None:
        step = self._step
        if step is None or not self._seconds or run.spec.hand is not None:  # the ledger has no steps of a helper
            self._seconds.clear()
            return
        seconds = {reason: round(value, 3) for reason, value in self._seconds.items()}
        locked = seconds.get("lock", 0.0)
        if "work" in seconds:
            seconds["work"] = round(max(0.0, seconds["work"] - locked), 3)
        self._seconds.clear()
        self._stored_at = time.monotonic()
        try:
            async with asyncio.timeout(_STORE_SECONDS):  # a busy pool must not delay the walk
                await run.add_sample(step, seconds)
        except _LOST as error:
            logger.debug("sample not stored run=%s step=%s error=%s", run.spec.id, step, format_error(error))

    async def _look_for_locks(self, run: OwnedRun) -> None:
        """Count the seconds in which a batch that takes long waits for locks. Ends with the batch."""
        with suppress(*_LOST):
            while True:
                pid = run.backend_pid  # raises once the run has ended
                async with self._database.connection() as connection:
                    if await connection.scalar(_WAITS_FOR_LOCK, {"pid": pid}):
                        self._seconds["lock"] += _PROBE_SECONDS
                await asyncio.sleep(_PROBE_SECONDS)
