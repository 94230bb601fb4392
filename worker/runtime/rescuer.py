"""Rescuer: enqueues runs again that the ledger has and Redis has lost."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from itertools import groupby

from redis.exceptions import ResponseError

from worker.errors import InvalidPayload, format_error
from worker.ledger import Ledger, RunSpec
from worker.queue.key_problems import KeyProblem, printable
from worker.queue.outage_log import REFUSALS, kind_of
from worker.queue.payload import decode_payload
from worker.queue.store import QueueStore
from worker.settings import Settings

logger = logging.getLogger("longhaul.rescue")

_PAGES_AT_ONCE = 10


class Rescuer:
    """Enqueues unfinished runs that the queue does not have.

    Any number of workers may rescue at the same time: a run is enqueued once for its id.

    Args:
        ledger: the durable record of runs.
        store: the queue.
        settings: the settings. In a namespace, runs of other queues than `worker.queues` are left alone: they may be in
            another namespace.
    """

    def __init__(self, ledger: Ledger, store: QueueStore, settings: Settings) -> None:
        self._ledger = ledger
        self._store = store
        self._queues = settings.own_queues()
        #: The place in the ledger behind which the next call continues.
        self._after: tuple[datetime, str] | None = None
        # While a worker requeues a run, only the ledger has it for a moment. The lifetime of a lease is a safe margin.
        self._idle_seconds = max(settings.worker.rescue_interval_seconds, settings.worker.lease_seconds)

    async def run(self) -> int:
        """Requeue orphans. Return their number.

        Unfinished runs that the queue has, such as paused ones, may be very many. One call looks at some thousand, and
        the next one continues behind them.
        """
        rescued = 0
        for _ in range(_PAGES_AT_ONCE):
            found, self._after = await self._ledger.find_orphans(idle_seconds=self._idle_seconds, after=self._after)
            if self._queues is not None:
                found = [spec for spec in found if spec.queue in self._queues]
            rescued += await self._rescue_lost(found)
            if self._after is None:
                break
        return rescued

    async def _rescue_lost(self, found: list[RunSpec]) -> int:
        """Requeue those of some unfinished runs that the queue does not have. Return their number."""
        rescued = 0
        for queue, specs in groupby(sorted(found, key=lambda spec: spec.queue), key=lambda spec: spec.queue):
            waiting = list(specs)
            try:
                known = await self._store.known([spec.id for spec in waiting], queue)
            except ResponseError as error:
                self._report(queue, waiting[0], error)
                continue
            lost = [spec for spec, is_known in zip(waiting, known, strict=True) if not is_known]
            # A run may have ended since it was read. A run leaves its queue after the ledger has its end.
            unfinished = await self._ledger.find_unfinished([spec.id for spec in lost]) if lost else ()
            for spec in lost:
                if spec.id in unfinished and await self._rescue(spec):
                    rescued += 1
        return rescued

    async def _rescue(self, spec: RunSpec) -> bool:
        """Requeue one orphan. If that fails, continue with the others."""
        try:
            decode_payload(spec.payload.encode(), accept_pickle=False)
        except InvalidPayload as error:
            await self._end_unreadable(spec, format_error(error))
            return False
        try:
            await self._store.requeue_orphan(spec.id, spec.payload, queue=spec.queue)
        except ResponseError as error:
            self._report(spec.queue, spec, error)
            return False
        logger.warning("run rescued job=%s run=%s: the queue had lost it", spec.job, spec.id)
        return True

    def _report(self, queue: str, spec: RunSpec, error: ResponseError) -> None:
        """Report a queue that cannot be used. Raise errors that are about the server."""
        if kind_of(error) in REFUSALS - {"NOPERM"}:
            raise error
        problem = KeyProblem(printable(queue), f"cannot take the run {spec.id}: {error}", ("TYPE", queue))
        self._store.problems.report([problem])

    async def _end_unreadable(self, spec: RunSpec, error: str) -> None:
        """End a run whose payload in the ledger cannot be read. Otherwise each rescue would find it again."""
        logger.error("run dead job=%s run=%s error=%s", spec.job, spec.id, error)
        known = await self._ledger.find(spec.id)
        if known is None or known.finished:
            return
        run = await self._ledger.claim(replace(spec, arguments=known.arguments))
        try:
            await run.finish("dead", error=error)
        finally:
            await run.close()
