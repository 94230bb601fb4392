"""Calls the job function again, in process, after a batch has failed: with half of its rows, or without one row.

Python gives an iterator no way to catch what the body of its `async for` raises. So the job function is called again:
its finished loops are skipped, and the one that failed continues from its cursor, with fewer rows until it has passed
the rows that failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
    """

    step: str
    rows: int
    remaining: int
    quarantine_limit: float
    key: Any = None

    def retry_half(self) -> RetryPlan:
        """Return the plan with half of the rows, or with the same single one."""
        return RetryPlan(self.step, max(1, self.rows // 2), max(self.remaining, self.rows))

    def retry_without_row(self, error: BaseException) -> RetryPlan:
        """Return the plan that sets the row aside."""
        return RetryPlan(self.step, 1, max(self.remaining, 1), skip_key=self.key, error=error)
