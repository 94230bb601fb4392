"""Enqueues arq's cron jobs by arq's rule: up to a second before they are due, under an id made from the due time.

So a stock worker and this one do not enqueue the same due time twice. Two gaps of stock arq are closed: a hash in Redis
(fire_cron.lua) prevents a late worker from enqueueing a due time again, and the result of a unique job is kept for a
minute (executor.py), which prevents a stock worker from doing so.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from arq.cron import CronJob
from arq.utils import to_unix_ms
from arq.worker import Worker as ArqWorker

from worker.arq_compat.codec import ArqCodec
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue.store import QueueStore
from worker.runtime.observer import Observer
from worker.runtime.scheduler import Scheduler
from worker.settings import WorkerSettings

logger = logging.getLogger("longhaul.cron")

#: Half of the time by which a cron job is enqueued before it is due: arq's `run_cron` looks two windows ahead.
_WINDOW_SECONDS = 0.5


class ArqCron(Scheduler):
    """Enqueues the cron lines of `@job` functions, and arq's cron jobs.

    Args:
        registry: the `@job` functions.
        ledger: the record of their last due times.
        store: the queue.
        rules: the `worker` section of the settings, for their queue and catch-up.
        arq: the arq worker, with its cron jobs and their time zone.
        codec: encodes payloads.
        observer: is notified of each due time of a `@job` that this worker enqueues.
        guards: whether the last due time of each line is kept in `worker:cron`.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        store: QueueStore,
        rules: WorkerSettings,
        arq: ArqWorker,
        codec: ArqCodec,
        *,
        observer: Observer | None = None,
        guards: bool = True,
    ) -> None:
        super().__init__(registry, ledger, store, rules, observer)
        self._arq = arq
        self._codec = codec
        self._guards = guards

    async def start(self, now: datetime | None = None) -> None:
        """Start, and enqueue cron jobs with `run_at_startup`."""
        await super().start(now)
        await self._look_at_arqs()

    async def look(self, now: datetime | None = None) -> list[str]:
        """Enqueue due jobs. Return the ids of the `@job` runs that this worker enqueued."""
        await self._look_at_arqs()
        return await super().look(now)

    async def _look_at_arqs(self) -> None:
        if self._arq.cron_jobs:
            await self._arq.run_cron(datetime.now(tz=self._arq.timezone), _WINDOW_SECONDS)

    async def enqueue_due(self, now: datetime, ahead: timedelta) -> None:
        """Enqueue the cron jobs of arq that are due by `now + ahead`."""
        for job in self._arq.cron_jobs:
            at_startup = job.next_run is None and job.run_at_startup
            if at_startup:
                job.next_run = now
            elif job.next_run is None:
                job.calculate_next(now)
            if job.next_run is not None and job.next_run < now + ahead:
                await self._enqueue_arqs(job, job.next_run, now, at_startup=at_startup)
                job.calculate_next(job.next_run)

    async def _enqueue_arqs(self, job: CronJob, due: datetime, now: datetime, *, at_startup: bool) -> None:
        if self._guards and job.unique and not job.job_id and not at_startup:
            run_id = f"{job.name}:{to_unix_ms(due)}"
            fields = (job.month, job.day, job.weekday, job.hour, job.minute, job.second, job.microsecond)
            line = f"arq {job.name} {' '.join(map(str, fields))}"
            if not await self._store.fire(
                run_id, self._codec.call(job.name), queue=self._arq.queue_name, due=due, line=line
            ):
                logger.debug("%s: enqueued elsewhere", run_id)
            return
        known_as = job.job_id or (f"{job.name}:{to_unix_ms(due)}" if job.unique else None)
        later = due if due > now else None
        await self._arq.pool.enqueue_job(
            job.name, _job_id=known_as, _queue_name=self._arq.queue_name, _defer_until=later
        )
