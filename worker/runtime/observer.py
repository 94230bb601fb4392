"""The interface through which a worker reports its events: to the mirror in Redis, to metrics, to traces.

Derive from `Observer` and override what you need; every method has an empty body.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, NamedTuple

from worker.batch import Progress


class RunInfo(NamedTuple):
    """A run that this worker has claimed.

    Attributes:
        helps: of a helper run, the id of the run whose walk it takes part in.
    """

    run_id: str
    job: str
    queue: str
    attempt: int
    enqueued_ms: int
    helps: str = ""


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

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """A batch was committed; `rows` counts the rows of the whole run."""

    def throttled(self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None) -> None:
        """The walk waits between two batches for a reason; None when it continues."""

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """The run has made no progress for `seconds`."""

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """The run returns to the queue: waiting (for a retry if there is an error), or paused.

        `how` is released, asleep or yielded.
        """

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """The run has ended: succeeded, dead or cancelled."""

    def lost(self, run: RunInfo) -> None:
        """Another worker has claimed the run."""
