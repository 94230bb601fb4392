"""Entering a job again, in process, at the batch that failed: whole, in halves, or with one row set aside.

Python gives an iterator no way to catch what the body of its `async for` raises. So the job's function is called again:
its finished loops are skipped, and the one that failed goes on from its cursor, with fewer rows until it is past the
rows that failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnError = Literal["raise", "quarantine"]


@dataclass
class RetryPlan:
    """How a loop is entered again.

    Attributes:
        step: its name.
        limit: rows of the next batch, at most.
        left: rows until the limit is over: those of the batch that failed.
        set_aside: the error of the one row that comes next, where it is to be set aside; None to do it.
    """

    step: str
    limit: int
    left: int
    set_aside: BaseException | None = None

    def passed(self, rows: int) -> bool:
        """Take note of rows that were committed. Returns whether the rows that failed are behind."""
        self.left -= rows
        self.limit = min(self.limit * 2, max(self.left, 1))
        return self.left <= 0


@dataclass(frozen=True)
class FailedBatch:
    """Where a loop failed.

    Attributes:
        step: its name.
        rows: rows of the batch, or those asked for where none were read.
        left: rows until the limit that it was under is over.
        quarantine_limit: rows that may be set aside: a number, or a share of those done; 0 for none.
    """

    step: str
    rows: int
    left: int
    quarantine_limit: float

    def halved(self) -> RetryPlan:
        """Return the entry with half of the rows, or with the same one."""
        return RetryPlan(self.step, max(1, self.rows // 2), max(self.left, self.rows))

    def without_the_row(self, error: BaseException) -> RetryPlan:
        """Return the entry that sets the row aside."""
        return RetryPlan(self.step, 1, max(self.left, 1), set_aside=error)
