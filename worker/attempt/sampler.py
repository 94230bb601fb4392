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

    def begin_wait(self) -> None:
        """Note that a batch has ended, and that the next one may have to wait."""
        if self._timer is not None:
            self._timer.cancel()
        if self._probe is not None:
            self._probe.cancel()
        self._timer = self._probe = None
        if self._is_working:
            self._add("work")
        self._is_working = False
        self._at = time.monotonic()

    def note_wait(self, reason: str) -> None:
        """Note the time since the last note as a wait."""
        self._add(reason)

    async def begin_batch(self, run: OwnedRun, *, is_walk: bool) -> None:
        """Note that a batch or another step begins, and store a sample if that is due."""
        now, step = time.monotonic(), self._fields.step if is_walk else None
        if step is not None and (step == self._step or self._step is None):
            age = now - self._stored_at
            first = self._stored_at == self._began_at
            due = _FIRST_SECONDS if first else max(_MIN_SECONDS, (now - self._began_at) * _SHARE)
            if self._seconds and age >= due:
                await self._store(run, step)
        elif self._step is not None and self._seconds:
            await self._store(run, self._step)
        self._step, self._is_working, self._at = step, True, time.monotonic()
        if not self._database.pooled:
            self._timer = asyncio.get_running_loop().call_later(_PROBE_SECONDS, self._start_probe, run)

    def _start_probe(self, run: OwnedRun) -> None:
        self._probe = asyncio.ensure_future(self._look_for_locks(run))

    def _add(self, reason: str) -> None:
        now = time.monotonic()
        self._seconds[reason] += now - self._at
        self._at = now

    async def _store(self, run: OwnedRun, step: str) -> None:
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
