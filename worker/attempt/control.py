"""`AttemptControl`: what an attempt asks of its worker, and what it reports to it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

from worker.batch import Progress
from worker.batch.throttle import Wait
from worker.ledger import OwnedRun


class AttemptControl(Protocol):
    """What an attempt asks of its worker, and what it reports to it.

    The bodies here are those of an attempt without a worker, e.g. in a test.
    """

    @property
    def draining(self) -> bool:
        """Whether the worker is about to stop."""
        return False

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return the operator's order for a run; None for none."""
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator has set for a run; None for none."""
        return None

    def became_durable(self, run: OwnedRun) -> None:
        """Take note that the run has begun in the ledger."""
        return

    def throttled(self, wait: Wait | None, since: datetime) -> None:
        """Take note that the walk waits, and why; None when it goes on.

        Args:
            wait: reason and end of the wait.
            since: aware time at which the wait began.
        """
        return

    def report(self, progress: Progress, rows: int) -> None:
        """Take note of a committed batch, or of what the job reports by `ctx.progress`.

        Args:
            progress: of the step.
            rows: rows of all committed batches of the run.
        """
        return


class NoControl(AttemptControl):
    """The control of an attempt that runs without a worker, e.g. in a test."""
