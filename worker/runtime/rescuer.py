"""Rescuer: runs that the ledger knows and Redis has forgotten go back into the queue."""

from __future__ import annotations

import logging
from itertools import groupby

from worker.ledger import Ledger
from worker.queue.store import QueueStore
from worker.settings import Settings

logger = logging.getLogger("longhaul.rescue")


class Rescuer:
    """Looks for unfinished runs that the queue does not have.

    Any number of workers may look at once: a run is enqueued by its id, and once.

    Args:
        ledger: the durable truth.
        store: the queue.
        settings: for `worker.rescue_interval_seconds`.
    """

    def __init__(self, ledger: Ledger, store: QueueStore, settings: Settings) -> None:
        self._ledger = ledger
        self._store = store
        # A run that is handed back is for a moment in the ledger only; the life of a lease is a safe distance.
        self._idle_seconds = max(settings.worker.rescue_interval_seconds, settings.worker.lease_seconds)

    async def run(self) -> int:
        """Put orphans back. Returns their number."""
        rescued = 0
        orphans = sorted(await self._ledger.find_orphans(idle_seconds=self._idle_seconds), key=lambda spec: spec.queue)
        for queue, specs in groupby(orphans, key=lambda spec: spec.queue):
            waiting = list(specs)
            known = await self._store.known([spec.id for spec in waiting], queue)
            for spec, is_known in zip(waiting, known, strict=True):
                if not is_known:
                    await self._store.requeue_orphan(spec.id, spec.payload, queue=queue)
                    logger.warning("run rescued job=%s run=%s: the queue had lost it", spec.job, spec.id)
                    rescued += 1
        return rescued
