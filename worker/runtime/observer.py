"""What the queue tells whoever watches: `observe` listens, and nothing here knows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, Protocol

from worker.batch import Progress


class RunInfo(NamedTuple):
    """A run that this worker has."""

    run_id: str
    job: str
    queue: str
    attempt: int
    enqueued_ms: int


class Observer(Protocol):
    """Hears what happens to runs; none of its methods may block or fail."""

    def started(self, run: RunInfo) -> None:
        """A try begins."""

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """The run is in the ledger from now on, perhaps with rows of earlier tries."""

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """A batch was committed; `rows` are those of the whole run."""

    def throttled(self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None) -> None:
        """The walk waits between two batches, and why; None when it goes on."""

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """The run has made no progress for so long."""

    def left(self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0) -> None:
        """The run goes back to the queue: waiting, paused or retrying."""

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """The run has ended: succeeded, dead or cancelled."""

    def lost(self, run: RunInfo) -> None:
        """Another worker has the run."""


class NullObserver:
    """Nobody listens."""

    def started(self, run: RunInfo) -> None:
        """Nothing."""

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """Nothing."""

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """Nothing."""

    def throttled(self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None) -> None:
        """Nothing."""

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """Nothing."""

    def left(self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0) -> None:
        """Nothing."""

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """Nothing."""

    def lost(self, run: RunInfo) -> None:
        """Nothing."""
