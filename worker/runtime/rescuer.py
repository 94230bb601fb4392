"""Rescuer: runs that the ledger knows and Redis has forgotten go back into the queue."""

from __future__ import annotations

import logging
import time
from itertools import groupby

from worker.ledger import Ledger
from worker.queue.store import QueueStore
from worker.settings import Settings

logger = logging.getLogger("longhaul.rescue")


class Rescuer:
    """Looks, now and then, for unfinished runs that the queue does not have.

    Any number of workers may look at once: enqueueing is by id, and once.

    Args:
        ledger: the durable truth.
        store: the queue.
        settings: for `worker.rescue_interval_seconds`.
    """

    def __init__(self, ledger: Ledger, store: QueueStore, settings: Settings) -> None:
        self._ledger = ledger
        self._store = store
        self._pause = settings.worker.rescue_interval_seconds
        # A run that is handed back is for a moment in the ledger only; a lease's life is a safe distance.
        self._idle = max(settings.worker.rescue_interval_seconds, settings.worker.lease_seconds)
        self._next = time.monotonic() + self._pause

    async def look(self, *, now: bool = False) -> int:
        """Put orphans back.

        Args:
            now: do not wait for the time of the next search.

        Returns:
            Their number.
        """
        if not now and time.monotonic() < self._next:
            return 0
        self._next = time.monotonic() + self._pause
        rescued = 0
        orphans = sorted(await self._ledger.find_orphans(idle_seconds=self._idle), key=lambda spec: spec.queue)
        for queue, specs in groupby(orphans, key=lambda spec: spec.queue):
            waiting = list(specs)
            known = await self._store.known([spec.id for spec in waiting], queue)
            for spec, is_known in zip(waiting, known, strict=True):
                if not is_known:
                    await self._store.put_back(spec.id, spec.payload, queue=queue)
                    logger.warning("run %s of %s was not in the queue any more: put back", spec.id, spec.job)
                    rescued += 1
        return rescued
