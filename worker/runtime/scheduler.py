"""Cron inside the worker: each due time of each cron line is enqueued once, however many workers run.

Every worker checks every line. A row in the ledger holds the last due time of each line. The worker that updates the
row enqueues the job before it commits; the others wait for the row lock, and then see that the due time is done. If a
worker dies in between, the row is unchanged; a hash in Redis, which the enqueueing script (fire_cron.lua) compares and
sets, prevents the next worker from enqueueing the due time again. So neither a crash nor a Redis that lost its data
repeats a due time, and a due time that no worker saw can be caught up.

Several applications may share a Redis. The fields of the hash and the ids of the runs contain a name that is made from
the application's database (`Ledger.read_application`), so that a job of one application does not hide a job of the
same name and cron line of another.

The time comes from Redis, whose clock determines when all jobs are due, and not from the worker's machine. Otherwise a
worker whose clock is fast would enqueue due times early, and the others would skip the due times in between. The worker
reads the time from Redis when the next due time should have passed by the monotonic clock.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.job.definition import Job
from worker.job.registry import Registry
from worker.job.schedule import CronLine
from worker.ledger import Ledger
from worker.queue.cron_lines import firing_id
from worker.queue.payload import Payload, now_ms
from worker.queue.store import Lock, QueueStore
from worker.runtime.observer import Observer
from worker.settings import WorkerSettings

logger = logging.getLogger("longhaul.cron")

#: A due time that is at most this many seconds ago counts as on time, not as missed.
_ON_TIME_SECONDS = 60.0
#: Longest and shortest pause between two reads of the server's time: its clock may be adjusted.
_LONGEST_SECONDS = 10.0
_LEAST_SECONDS = 0.05


@dataclass
class _Entry:
    job: Job[..., object]
    line: CronLine
    next_due: datetime


class Scheduler:
    """Enqueues the cron lines of all jobs of one worker.

    Args:
        registry: the jobs.
        ledger: the record of the last due times.
        store: the queue.
        rules: the `worker` section of the settings, for queue and catch-up.
        observer: is notified of each due time that this worker enqueues; none by default.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        store: QueueStore,
        rules: WorkerSettings,
        observer: Observer | None = None,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._rules = rules
        self._observer = observer or Observer()
        self._lines = [(job, line) for job in registry.values() for line in job.schedule]
        self._entries: list[_Entry] = []
        self._application = ""
        #: When to read the server's time again, by the monotonic clock.
        self._ask_at = 0.0

    async def start(self, now: datetime | None = None) -> None:
        """Read the last due times. A new line begins now."""
        if not self._lines:
            return
        self._application = await self._ledger.read_application()
        last = await self._ledger.list_cron_firings()
        new = [(job, line) for job, line in self._lines if (job.name, str(line)) not in last]
        if new:
            moment = now or await self._store.time()
            for job, line in new:
                await self._ledger.start_cron_line(job.name, str(line), moment)
            last = await self._ledger.list_cron_firings()  # workers may start at the same time: use the stored moment
        for job, line in self._lines:
            self._entries.append(_Entry(job, line, line.next_after(last[job.name, str(line)])))

    async def look(self, now: datetime | None = None) -> list[str]:
        """Enqueue due cron jobs. The worker calls this at each iteration; it is cheap if nothing is due.

        Returns:
            The ids of the runs that this worker enqueued.
        """
        began = time.monotonic()
        if not self._entries or (now is None and began < self._ask_at):
            return []
        moment = now or await self._store.time()
        fired = []
        for entry in self._entries:
            if entry.next_due <= moment:
                run_id = await self._fire(entry, moment)
                if run_id is not None:
                    fired.append(run_id)
        left = (min(entry.next_due for entry in self._entries) - moment).total_seconds()
        self._ask_at = began + min(_LONGEST_SECONDS, max(_LEAST_SECONDS, left))
        return fired

    async def _fire(self, entry: _Entry, moment: datetime) -> str | None:
        due, following = entry.next_due, entry.line.next_after(entry.next_due)
        while following <= moment:  # several due times were missed: enqueue the last one only
            due, following = following, entry.line.next_after(following)
        job, line = entry.job, str(entry.line)
        fired: str | None = None
        # This worker holds the row lock until the job is in Redis. If it dies in between, another worker repeats the
        # due time, and the guard in Redis prevents a second run.
        async with self._ledger.claim_firing(job.name, line, due) as ours:
            if not ours:
                logger.debug("cron %s (%s): %s was fired elsewhere", job.name, line, due.isoformat())
            elif self._rules.cron_catch_up == "skip" and moment - due > timedelta(seconds=_ON_TIME_SECONDS):
                logger.warning("cron %s (%s): %s was missed: skipped by setting", job.name, line, due.isoformat())
            else:
                fired = await self._enqueue(job, line, due)
        entry.next_due = following
        if fired is not None:
            self._observer.cron_fired(job.name, run_id=fired, late_seconds=(moment - due).total_seconds())
        return fired

    async def _enqueue(self, job: Job[..., object], line: str, due: datetime) -> str | None:
        run_id = firing_id(job.name, line, due, self._application)
        arguments = job.encode_arguments((), {})  # default factories are called once for all attempts
        payload = Payload(job.name, [], arguments, now_ms()).to_json()
        shared_guard = f"{job.name} {line}"
        guard = f"{shared_guard} @{self._application}"
        queue, priority = self._rules.queue, job.priority
        lock = None
        if job.unique is not None:
            lock = Lock(job.unique_key(arguments), job.unique.counts, round(job.unique.seconds * 1000))
        if not await self._store.fire(
            run_id,
            payload,
            queue=queue,
            due=due,
            line=guard,
            old_line=shared_guard,
            priority=priority,
            lock=lock,
        ):
            return None
        logger.info("cron %s (%s): enqueued %s for %s", job.name, line, run_id, due.isoformat())
        return run_id
