"""Calls the job function again, in process, after a batch has failed: with half of its rows, or without one row.

Python gives an iterator no way to catch what the body of its `async for` raises. So the job function is called again:
its finished loops are skipped, and the one that failed continues from its cursor, with fewer rows until it has passed
the rows that failed.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError

from worker.db.errors import is_transient, is_unavailable
from worker.errors import CursorMismatch, PoisonBatch, Retry, UnsupportedStatement, UsageError
from worker.ledger import Ledger, OwnedRun

#: Retries without progress until the attempt has failed: for errors that pass, such as a deadlock, and for batches that
#: are halved until the row that fails stands alone.
_TRANSIENT_RETRIES = 12
_QUARANTINE_RETRIES = 40
#: Errors that no row is to blame for, and that no smaller batch cures.
_NOT_OF_A_ROW = (PoisonBatch, CursorMismatch, UsageError, Retry, UnsupportedStatement)

OnError = Literal["raise", "quarantine"]


@dataclass
class RetryPlan:
    """How a loop is entered again.

    Attributes:
        step: The name of its step.
        limit: The largest size of the next batch.
        remaining: Rows until the limit ends: those of the batch that failed.
        skip_key: The key of the row to set aside, as JSON values; None to do all rows.
        error: The error to store with that row.
    """

    step: str
    limit: int
    remaining: int
    skip_key: Any = None
    error: BaseException | None = None

    @classmethod
    def from_pace(cls, step: str, pace: dict[str, Any] | None) -> RetryPlan | None:
        """Return the plan that an earlier attempt has stored, or None."""
        limit, remaining = (pace or {}).get("limit"), (pace or {}).get("remaining")
        if isinstance(limit, int) and isinstance(remaining, int) and limit > 0 and remaining > 0:
            return cls(step, limit, remaining)
        return None

    def dump(self) -> dict[str, Any]:
        """Return limit and remaining rows, to be stored with the pace of the step."""
        return {"limit": self.limit, "remaining": self.remaining}

    def passed(self, rows: int) -> bool:
        """Take note of committed rows. Returns whether the rows that failed are behind."""
        self.remaining -= rows
        self.limit = min(self.limit * 2, max(self.remaining, 1))
        return self.remaining <= 0


@dataclass(frozen=True)
class FailedBatch:
    """The batch in which a loop failed.

    Attributes:
        step: The name of the step.
        rows: The number of rows, or the size if none were read.
        remaining: Rows until the limit of an earlier retry ends.
        quarantine_limit: Rows that may be set aside: a number, or a share of those done; 0 for none.
        key: The key of its row if it has only one, as JSON values; else None.
        batches: Committed batches of the step when it failed.
        seconds: Seconds from its begin to its failure.
        pace: The pace of the step, which has taken note of it.
    """

    step: str
    rows: int
    remaining: int
    quarantine_limit: float
    key: Any = None
    batches: int = 0
    seconds: float = 0.0
    pace: dict[str, Any] = field(default_factory=dict)

    def retry_half(self) -> RetryPlan:
        """Return the plan with half of the rows, or with the same single one."""
        return RetryPlan(self.step, max(1, self.rows // 2), max(self.remaining, self.rows))

    def retry_without_row(self, error: BaseException) -> RetryPlan:
        """Return the plan that sets the row aside."""
        return RetryPlan(self.step, 1, max(self.remaining, 1), skip_key=self.key, error=error)


class BatchRetries:
    """Decides whether, and with which rows, the job function is called again after a batch has failed."""

    def __init__(self) -> None:
        self._count = self._batches_before = 0

    async def decide(self, failure: FailedBatch, error: Exception, run: OwnedRun, ledger: Ledger) -> RetryPlan | None:
        """Return how the failed loop is entered again, or None if the error is that of the attempt.

        The steps are read from the ledger first: an error that comes out of COMMIT, or after it, does not tell whether
        the batch was committed. If it was, the loop continues behind it with all rows.

        After a transient error (deadlock, lock timeout, statement timeout) the batch is halved, down to one row. After
        another error, or a transient one that does not pass, it is halved until the row that fails stands alone, if the
        loop has a quarantine; that row goes to quarantine.

        Raises:
            FencedOut: Another worker owns the run.
        """
        if is_unavailable(error):
            return None
        try:
            await run.checkpoints.reload()
        except (SQLAlchemyError, OSError):
            return None  # the next attempt reads the ledger when it claims the run
        step = run.steps[failure.step]
        is_committed = step.batches != failure.batches
        step.pace = failure.pace
        if isinstance(error, _NOT_OF_A_ROW) or not (is_transient(error) or failure.quarantine_limit):
            return None
        if run.checkpoints.batches != self._batches_before:
            self._count, self._batches_before = 0, run.checkpoints.batches
        self._count += 1
        if is_committed:
            return RetryPlan(failure.step, failure.rows, 0)
        if is_transient(error) and self._count <= _TRANSIENT_RETRIES:
            await asyncio.sleep(random.uniform(0.01, 0.05) * self._count)  # noqa: S311 - no secret
            return failure.retry_half()
        if not failure.quarantine_limit or self._count > _QUARANTINE_RETRIES:
            return None
        if failure.rows > 1:
            return failure.retry_half()
        if failure.key is None:
            return None  # the row cannot be read, so its key is unknown
        if await ledger.quarantine.has_room(run.spec.id, run.steps[failure.step], failure.quarantine_limit):
            return failure.retry_without_row(error)
        return None


def ensure_not_poison(run: OwnedRun, max_attempts: int, name: str, rows: int, keys: list[Any]) -> None:
    """Raise `PoisonBatch` for the first batch of an attempt that is one too many.

    Each attempt before has ended with its worker, without a commit: this is the batch that they died in.

    Args:
        run: The run.
        max_attempts: The number of attempts that are allowed.
        name: The batch, for the error.
        rows: Its size.
        keys: Its first and its last key.
    """
    if run.attempt > max_attempts and not run.has_progressed:
        ends = f"{run.attempt - 1} times: {rows} rows, keys {keys[0]!r} to {keys[1]!r}"
        raise PoisonBatch(f"{name} ended its worker {ends}", keys)
