"""Counts the events of a worker.

All of it happens in the event loop, in plain numbers of objects that are made once for each job: an event costs well
under a microsecond, whatever the number of series. The labels come from the jobs that the worker has registered, the
queues that it serves and the steps that its code names, each with a limit. So nothing that Redis or a client sends can
make a series: a run of an unknown job counts as `other`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from time import monotonic, time
from typing import Any

from worker.batch import Progress
from worker.observe.metrics import definitions as names
from worker.observe.metrics.snapshot import Histogram, Snapshot, Value
from worker.observe.mirror_entry import escape
from worker.runtime.observer import Observer, RunInfo

#: Attempts whose begin is remembered. An attempt that is left to its lease, after an outage, never reports its end.
_MOST_BEGUN = 10_000
#: Seconds between two readings of the wall clock.
_TIDY_SECONDS = 10.0
_SUCCEEDED = "succeeded"
_LONGEST_LABEL = 100
_RUN_BUCKETS, _LATENCY_BUCKETS = names.RUN_SECONDS.buckets, names.LATENCY_SECONDS.buckets
_SHORTEST_RUN = _RUN_BUCKETS[0]


class JobCounts:
    """The numbers of one job.

    Args:
        queues: the queues that the worker serves.
    """

    __slots__ = (
        "_others",
        "attempts",
        "batch_seconds",
        "last_success",
        "late_seconds",
        "latencies",
        "leases_lost",
        "run_seconds",
        "stalls",
        "steps",
        "succeeded",
        "succeeded_at",
        "takeovers",
        "throttled",
    )

    def __init__(self, queues: Iterable[str]) -> None:
        self.attempts = self.succeeded = self.takeovers = self.leases_lost = self.stalls = 0
        #: Ended attempts by their outcome, but for `succeeded`.
        self._others = dict.fromkeys((outcome for outcome in names.OUTCOMES if outcome != _SUCCEEDED), 0)
        self.run_seconds = Histogram(names.RUN_SECONDS)
        self.batch_seconds = Histogram(names.BATCH_SECONDS)
        self.late_seconds: Histogram | None = None
        self.latencies: dict[str, Histogram] = {}
        #: Rows, batches and quarantined rows, by step.
        self.steps: dict[str, list[int]] = {}
        self.throttled: dict[str, float] = {}
        #: When a run has last succeeded: by the wall clock before the last snapshot, by the monotonic one since then.
        self.last_success = self.succeeded_at = 0.0

    @property
    def outcomes(self) -> dict[str, int]:
        """The ended attempts by their outcome."""
        return {one: self.succeeded if one == _SUCCEEDED else self._others[one] for one in names.OUTCOMES}

    def count_outcome(self, outcome: str) -> None:
        """Count an ended attempt that did not succeed."""
        if outcome in self._others:
            self._others[outcome] += 1

    def step(self, name: str) -> list[int]:
        """Return the numbers of a step: its own, or those of `other` beyond the limit."""
        found = self.steps.get(name)
        if found is None:
            label = name if len(self.steps) < names.MOST_STEPS and len(name) <= _LONGEST_LABEL else names.OTHER
            found = self.steps.setdefault(label, [0, 0, 0])
        return found


class Metrics(Observer):
    """An `Observer` that counts.

    Args:
        jobs: the registered jobs.
        queues: the queues that the worker serves.
    """

    def __init__(self, jobs: Iterable[str], queues: Iterable[str]) -> None:
        served = list(dict.fromkeys(queues))[: names.MOST_QUEUES]
        self._queues = {queue: queue for queue in served}
        known = sorted(set(jobs))[: names.MOST_JOBS]
        self._jobs = {job: JobCounts(served) for job in known}
        self._other = self._jobs.pop(names.OTHER, JobCounts(served))
        #: When each running attempt has begun, by the monotonic clock.
        self._begun: dict[str, float] = {}
        #: The wall clock at 0 of the monotonic one, read again at times: an event reads one clock.
        self._epoch = time() - monotonic()
        #: The walks that wait: their counts, the reason, and up to when the wait is counted.
        self._waits: dict[str, tuple[JobCounts, str, float]] = {}

    async def run(self) -> None:
        """Read the wall clock and forget attempts without an end, again and again."""
        while True:
            self._tidy()
            await asyncio.sleep(_TIDY_SECONDS)

    # --- events

    def started(self, run: RunInfo) -> None:
        """Count an attempt, and the time for which its run has been due."""
        # Written out, as `ended`: these two run for each job, and a call costs as much as what it would do.
        run_id, job, queue, _, enqueued_ms, _, due_ms, took_over = run
        counts = self._jobs.get(job) or self._other
        counts.attempts += 1
        self._begun[run_id] = now = monotonic()
        if took_over:
            counts.takeovers += 1  # it was due when the lease of its worker expired
            return
        if enqueued_ms > due_ms:
            due_ms = enqueued_ms
        if due_ms > 0:
            try:
                latency = counts.latencies[queue]
            except KeyError:
                latency = self._add_latency(counts, queue)
            waited = now + self._epoch - due_ms / 1000
            latency.counts[bisect_left(_LATENCY_BUCKETS, waited)] += 1
            if waited > 0:  # else the clock of the client is ahead
                latency.sum += waited

    def _tidy(self) -> None:
        """Read the wall clock, and forget the oldest attempts whose end is not known."""
        self._epoch = time() - monotonic()
        excess = len(self._begun) - _MOST_BEGUN
        for run_id in list(islice(self._begun, max(0, excess))):
            del self._begun[run_id]

    def _add_latency(self, counts: JobCounts, queue: str) -> Histogram:
        return counts.latencies.setdefault(self._queues.get(queue, names.OTHER), Histogram(names.LATENCY_SECONDS))

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """Count a committed batch."""
        if not progress.batches:
            return  # progress that the job reports, or the begin of a step
        counts = self._jobs.get(run.job, self._other)
        step = counts.step(progress.step)
        step[0] += progress.batch_size
        step[1] += 1
        step[2] += progress.quarantined
        counts.batch_seconds.observe(progress.batch_seconds)

    def throttled(
        self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None, kind: str = ""
    ) -> None:
        """Count the time that a walk has waited for the last reason."""
        self._count_wait(run.run_id)
        if reason is not None:
            counts, label = self._jobs.get(run.job, self._other), names.REASONS.get(kind, names.APPLICATION)
            self._waits[run.run_id] = (counts, label, monotonic())

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """Count a stall."""
        self._jobs.get(run.job, self._other).stalls += 1

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """Count the end of an attempt whose run goes back to the queue. A run that has not begun is not counted."""
        if run.run_id in self._begun:
            self._end(run, "paused" if state == "paused" else how)

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """Count the end of a run."""
        if state != _SUCCEEDED:
            self._end(run, state)
            return
        counts = self._jobs.get(run[1]) or self._other
        counts.succeeded += 1
        counts.succeeded_at = now = monotonic()
        begun = self._begun.pop(run[0], None)
        if begun is not None:
            took = now - begun
            seconds = counts.run_seconds
            seconds.counts[0 if took <= _SHORTEST_RUN else bisect_left(_RUN_BUCKETS, took)] += 1
            seconds.sum += took
        if self._waits:
            self._count_wait(run[0])

    def lost(self, run: RunInfo) -> None:
        """Count a lost lease."""
        self._end(run, "lost").leases_lost += 1

    def cron_fired(self, job: str, *, run_id: str, late_seconds: float) -> None:
        """Count a due time of a cron line."""
        counts = self._jobs.get(job, self._other)
        if counts.late_seconds is None:
            counts.late_seconds = Histogram(names.CRON_LATENESS)
        counts.late_seconds.observe(max(0.0, late_seconds))

    def _end(self, run: RunInfo, outcome: str) -> JobCounts:
        counts = self._jobs.get(run.job, self._other)
        counts.count_outcome(outcome)
        begun = self._begun.pop(run.run_id, None)
        if begun is not None:
            counts.run_seconds.observe(monotonic() - begun)
        if self._waits:
            self._count_wait(run.run_id)
        return counts

    def _count_wait(self, run_id: str) -> None:
        wait = self._waits.pop(run_id, None)
        if wait is not None:
            counts, label, began = wait
            counts.throttled[label] = counts.throttled.get(label, 0.0) + monotonic() - began

    # --- reading

    @property
    def running(self) -> int:
        """Number of attempts that have begun and not ended."""
        return len(self._begun)

    def snapshot(self) -> Snapshot:
        """Return the values, with the time up to now of walks that wait."""
        self._tidy()
        now, epoch = monotonic(), self._epoch
        for run_id, (counts, label, began) in list(self._waits.items()):
            counts.throttled[label] = counts.throttled.get(label, 0.0) + now - began
            self._waits[run_id] = (counts, label, now)
        for counts in (*self._jobs.values(), self._other):
            if counts.succeeded_at:
                counts.last_success, counts.succeeded_at = counts.succeeded_at + epoch, 0.0
        found: Snapshot = {metric.name: {} for metric in names.METRICS if not metric.of_servers}
        for job, counts in (*self._jobs.items(), (names.OTHER, self._other)):
            if job != names.OTHER or counts.attempts or any(counts.outcomes.values()):
                _add_job(found, escape(job), counts)
        return {name: values for name, values in found.items() if values}


def _add_job(found: Snapshot, job: str, counts: JobCounts) -> None:
    """Add the values of a job. Those that an alert compares with the past exist before their first event."""

    def add(metric: names.Metric, value: Value, *labels: str) -> None:
        found[metric.name][job, *map(escape, labels)] = value

    for outcome, number in counts.outcomes.items():
        if number or outcome in names.ALWAYS_SHOWN:
            add(names.JOBS, number, outcome)
    add(names.ATTEMPTS, counts.attempts)
    add(names.TAKEOVERS, counts.takeovers)
    add(names.LEASES_LOST, counts.leases_lost)
    add(names.STALLS, counts.stalls)
    if counts.attempts:
        add(names.RUN_SECONDS, counts.run_seconds.value())
    for queue, latency in counts.latencies.items():
        add(names.LATENCY_SECONDS, latency.value(), queue)
    if counts.last_success:
        add(names.LAST_SUCCESS, counts.last_success)
    if counts.steps:
        add(names.BATCH_SECONDS, counts.batch_seconds.value())
    for step, (rows, batches, quarantined) in counts.steps.items():
        add(names.ROWS, rows, step)
        add(names.BATCHES, batches, step)
        add(names.QUARANTINED, quarantined, step)
    for reason, seconds in counts.throttled.items():
        add(names.THROTTLED, seconds, reason)
    if counts.late_seconds is not None:
        add(names.CRON_LATENESS, counts.late_seconds.value())
