"""The interface through which a worker reports its events: to the mirror in Redis, to metrics, to traces.

Derive from `Observer` and override what you need; every method has an empty body. `Observers` passes the events on to
several of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.runtime.supervision import supervise

if TYPE_CHECKING:  # middleware that observes is loaded by clients, too, which have no loops
    from worker.batch import Progress


class RunInfo(NamedTuple):
    """A run that this worker has claimed.

    Attributes:
        helps: of a helper run, the id of the run whose walk it takes part in.
        due_ms: time at which it was due, in ms since 1970; 0 for at once.
        took_over: whether it was claimed after the lease of another worker had expired.
    """

    run_id: str
    job: str
    queue: str
    attempt: int
    enqueued_ms: int
    helps: str = ""
    due_ms: int = 0
    took_over: bool = False


class Observer:
    """Receives the events of a worker and of its runs.

    The worker calls these methods in its event loop, in the order of the events. They must neither block nor raise. Do
    slow work in `run`.
    """

    async def run(self) -> None:
        """Do slow work until cancelled. If it raises, the worker starts it again after a pause."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Finish after the worker has stopped."""

    def worker_started(self) -> None:
        """The worker starts."""

    def worker_stopped(self) -> None:
        """The worker has run its last job."""

    def started(self, run: RunInfo) -> None:
        """An attempt begins."""

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """The run was created in the ledger, or taken over with the rows of earlier attempts."""

    def batch_began(self, run: RunInfo) -> None:
        """A batch of a walk over a table begins. It is called in the task that runs the job."""

    def walk_ended(self, run: RunInfo, *, failed: bool) -> None:
        """A walk has ended; if it failed, its open batch is rolled back. It is called in the task that runs the job."""

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """A batch was committed; `rows` counts the rows of the whole run."""

    def throttled(
        self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None, kind: str = ""
    ) -> None:
        """The walk waits between two batches for a reason; None when it continues.

        `kind` is the reason without its figures; empty for a reason of the application.
        """

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """The run has made no progress for `seconds`."""

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """The run returns to the queue: waiting (for a retry if there is an error), or paused.

        `how` is released, asleep, yielded, failed (it is retried) or snoozed.
        """

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """The run has ended: succeeded, dead or cancelled."""

    def lost(self, run: RunInfo) -> None:
        """Another worker has claimed the run."""

    def cron_fired(self, job: str, *, run_id: str, late_seconds: float) -> None:
        """A due time of a cron line was enqueued by this worker, so long after it had passed."""


class Observers(Observer):
    """Passes the events on to several observers.

    Args:
        observers: the observers, in the order in which they receive an event.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        # These events come for each job or batch: call only those that do something with them.
        self._on_start = [one.started for one in observers if type(one).started is not Observer.started]
        self._on_end = [one.ended for one in observers if type(one).ended is not Observer.ended]
        self._on_batch = [one.batch_began for one in observers if type(one).batch_began is not Observer.batch_began]

    async def run(self) -> None:
        """Run the observers, each supervised."""
        named = [(f"observer {type(one).__name__}", one.run) for one in self._observers]
        tasks = [asyncio.create_task(supervise(name, run), name=name) for name, run in named]
        # `gather` passes each cancellation on. A task group passes on the first one alone, and `asyncio.wait_for` of
        # CPython 3.11 loses one that comes together with the result.
        await asyncio.gather(*tasks)

    async def close(self) -> None:
        """Close the observers. Raise the first error after all were closed."""
        ended = await asyncio.gather(*(one.close() for one in self._observers), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error

    def worker_started(self) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.worker_started()

    def worker_stopped(self) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.worker_stopped()

    def started(self, run: RunInfo) -> None:
        """Pass the event on."""
        for call in self._on_start:
            call(run)

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.durable(run, attempt=attempt, takeovers=takeovers, rows=rows)

    def batch_began(self, run: RunInfo) -> None:
        """Pass the event on."""
        for call in self._on_batch:
            call(run)

    def walk_ended(self, run: RunInfo, *, failed: bool) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.walk_ended(run, failed=failed)

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.progressed(run, progress, rows=rows)

    def throttled(
        self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None, kind: str = ""
    ) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.throttled(run, reason, since=since, until=until, kind=kind)

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.stalled(run, seconds)

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.requeued(run, state, error=error, delay=delay, how=how)

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """Pass the event on."""
        for call in self._on_end:
            call(run, state, error=error, result=result)

    def lost(self, run: RunInfo) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.lost(run)

    def cron_fired(self, job: str, *, run_id: str, late_seconds: float) -> None:
        """Pass the event on."""
        for one in self._observers:
            one.cron_fired(job, run_id=run_id, late_seconds=late_seconds)
