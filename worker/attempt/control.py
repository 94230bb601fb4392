"""What a job knows of the worker that runs it: orders and the pace that come from there, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

from worker.batch import Progress
from worker.batch.throttle import Throttle, Wait

if TYPE_CHECKING:
    from worker.attempt.attempt import Attempt


class AttemptControl(Protocol):
    """What the worker tells a job, and what it wants to hear: the only thing that a job knows of its queue."""

    @property
    def draining(self) -> bool:
        """Whether the worker is about to stop."""

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return what an operator wants of the run."""

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator wants, or None."""

    def throttled(self, host: Attempt, held: Wait | None, since: datetime) -> None:
        """Take note that the walk waits, and why; None when it goes on."""

    def report(self, host: Attempt, progress: Progress) -> None:
        """Take note of a committed batch."""


class NoControl:
    """The control of a job that runs without a worker, e.g. in a test."""

    draining = False

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """No operator, no orders."""
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """No operator, no pace."""
        return None

    def throttled(self, host: Attempt, held: Wait | None, since: datetime) -> None:
        """Nobody listens."""

    def report(self, host: Attempt, progress: Progress) -> None:
        """Nobody listens."""


@dataclass(frozen=True)
class JobRules:
    """The rules of the job that the loops need."""

    max_attempts: int
    throttles: tuple[Throttle, ...] = ()
