"""Cron inside the worker: each due time of each line is enqueued once, whatever number of workers there are.

Every worker looks at every line. A row in the ledger holds the last due time of each line; whoever moves it forward
enqueues the job before he commits, while the others wait for that row, and then find the time taken. A worker that
dies in between leaves the row as it was; a hash in Redis, compared and set by the script that enqueues (fire_cron.lua),
keeps the next one from doing it again. So neither a crash nor a Redis that lost its data repeats a due time, and one
that no worker saw can be caught up.

Redis says what time it is, by whose clock all jobs are due, and not the machine of a worker: one whose clock is fast,
or was set, would else take due times before they come, and keep all others from those in between. It is asked when the
next due time should have come, by a clock that nobody sets.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from worker.job.definition import Job
from worker.job.registry import Registry
from worker.job.schedule import CronLine
from worker.ledger import Ledger
from worker.queue.payload import Payload, now_ms
from worker.queue.store import Lock, QueueStore
from worker.settings import WorkerSettings

logger = logging.getLogger("longhaul.cron")

#: A due time that is seen within this time, in seconds, is on time and not missed.
_ON_TIME_SECONDS = 60.0
#: Longest and shortest pause between two questions what time it is: the server's clock may be set.
_LONGEST_SECONDS = 10.0
_LEAST_SECONDS = 0.05


@dataclass
class _Entry:
    job: Job[..., object]
    line: CronLine
    next_due: datetime


class Scheduler:
    """The cron lines of all jobs of one worker.

    Args:
        registry: the jobs.
        ledger: for the last firings.
        store: where to enqueue.
        rules: for queue and catch-up.
    """

    def __init__(self, registry: Registry, ledger: Ledger, store: QueueStore, rules: WorkerSettings) -> None:
        self._ledger = ledger
        self._store = store
        self._rules = rules
        self._lines = [(job, line) for job in registry.values() for line in job.schedule]
        self._entries: list[_Entry] = []
        #: When to ask for the time again, by the monotonic clock.
        self._ask_at = 0.0

    async def start(self, now: datetime | None = None) -> None:
        """Read the last firings; a line that is new begins now."""
        if not self._lines:
            return
        last = await self._ledger.list_cron_firings()
        new = [(job, line) for job, line in self._lines if (job.name, str(line)) not in last]
        if new:
            moment = now or await self._store.time()
            for job, line in new:
                await self._ledger.start_cron_line(job.name, str(line), moment)
            last = await self._ledger.list_cron_firings()  # others begin at the same time: one moment counts
        for job, line in self._lines:
            self._entries.append(_Entry(job, line, line.next_after(last[job.name, str(line)])))

    async def look(self, now: datetime | None = None) -> list[str]:
        """Enqueue what is due; called by the worker at each turn, and cheap when nothing is.

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
        while following <= moment:  # several times were missed: the last one stands for all
            due, following = following, entry.line.next_after(following)
        job, line = entry.job, str(entry.line)
        fired: str | None = None
        # The ledger's row is ours until the job is in Redis. Should we die in between, another worker takes the due
        # time again, and the guard in Redis knows that it was enqueued.
        async with self._ledger.claim_firing(job.name, line, due) as ours:
            if not ours:
                logger.debug("cron %s (%s): %s was fired elsewhere", job.name, line, due.isoformat())
            elif self._rules.cron_catch_up == "skip" and moment - due > timedelta(seconds=_ON_TIME_SECONDS):
                logger.warning("cron %s (%s): %s was missed: skipped by setting", job.name, line, due.isoformat())
            else:
                fired = await self._enqueue(job, line, due)
        entry.next_due = following
        return fired

    async def _enqueue(self, job: Job[..., object], line: str, due: datetime) -> str | None:
        run_id = firing_id(job.name, line, due)
        arguments = job.encode_arguments((), {})  # what default factories make, drawn once for all attempts
        payload = Payload(job.name, [], arguments, now_ms()).to_json()
        guard = f"{job.name} {line}"
        queue, priority = self._rules.queue, job.priority
        lock = None
        if job.unique is not None:
            lock = Lock(job.unique_key(arguments), job.unique.counts, round(job.unique.seconds * 1000))
        if not await self._store.fire(run_id, payload, queue=queue, due=due, line=guard, priority=priority, lock=lock):
            return None
        logger.info("cron %s (%s): enqueued %s for %s", job.name, line, run_id, due.isoformat())
        return run_id


def firing_id(job: str, line: str, due: datetime) -> str:
    """Return the run's id of one due time: the same in every worker."""
    mark = hashlib.sha256(line.encode()).hexdigest()[:6]
    return f"cron:{job}:{mark}:{due.astimezone(UTC):%Y%m%dT%H%M%SZ}"
