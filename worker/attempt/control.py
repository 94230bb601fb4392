"""`AttemptControl`: the interface between an attempt and its worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

from worker.batch import Progress
from worker.batch.throttle import Wait
from worker.ledger import OwnedRun


class AttemptControl(Protocol):
    """The interface through which an attempt queries its worker and reports to it.

    The default methods serve an attempt without a worker, e.g. in a test.
    """

    @property
    def draining(self) -> bool:
        """Whether the worker is draining."""
        return False

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return the operator command for a run; None if there is none."""
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator has set for a run; None if there is none."""
        return None

    async def must_yield(self) -> bool:
        """Return whether the walk is to give its slot to another run, which waits for it."""
        return False

    def became_durable(self, run: OwnedRun) -> None:
        """Report that the run has begun in the ledger."""
        return

    def step_began(self, name: str) -> None:
        """Report that the function of a step begins: the job's timeout holds for it."""
        return

    def step_ended(self) -> None:
        """Report that the function of a step has ended."""
        return

    def batch_began(self) -> None:
        """Report that a batch of a walk over a table begins, in the task that runs the job."""
        return

    def walk_ended(self, *, failed: bool) -> None:
        """Report that a walk has ended, in the task that runs the job.

        Args:
            failed: whether an error ended it, and its open batch is rolled back.
        """
        return

    def throttled(self, wait: Wait | None, since: datetime) -> None:
        """Report that the walk waits, with the reason, or that it continues.

        Args:
            wait: reason and end of the wait; None if the walk continues.
            since: aware time at which the wait began.
        """
        return

    async def start_hands(self, step: str, numbers: Sequence[int], fence: int) -> None:
        """Enqueue helper runs for a walk of this run. Without a worker, the run walks alone.

        Args:
            step: name of the step.
            numbers: numbers of the hands.
            fence: fence of this attempt.
        """
        return

    async def is_alive(self, run_id: str) -> bool:
        """Return whether a worker holds the lease of a run."""
        return True

    def report(self, progress: Progress, rows: int) -> None:
        """Report a committed batch, or the progress from `ctx.progress`.

        Args:
            progress: progress of the step.
            rows: rows of all committed batches of the run.
        """
        return


class NoControl(AttemptControl):
    """The control of an attempt that runs without a worker, e.g. in a test."""
