"""Calls the job function again, in process, after a batch has failed: with half of its rows, or without one row.

A Python iterator cannot catch an exception from the body of its `async for`. So the job function is called again:
its finished loops are skipped, and the failed loop continues from its cursor, with fewer rows in a batch until it has
passed the failed rows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from worker.db.errors import is_transient, is_unavailable, sqlstate
from worker.errors import (
    CursorMismatch,
    InvalidRow,
    LonghaulError,
    PoisonBatch,
    Retry,
    SinkUnavailable,
    SourceUnavailable,
    UnsupportedStatement,
    UsageError,
    format_error,
    iter_causes,
)
from worker.ledger import Ledger, OwnedRun, StepRecord

if TYPE_CHECKING:
    from worker.batch.source import Page, Source
    from worker.batch.transaction import BatchTransaction

T = TypeVar("T")

logger = logging.getLogger("longhaul.batch")

#: Retries without progress after which the attempt fails: for transient errors, such as a deadlock, and for batches
#: that are halved until they hold only the failing row.
_TRANSIENT_RETRIES = 12
_QUARANTINE_RETRIES = 40
#: Errors that no row causes and that a smaller batch does not avoid.
_NOT_OF_A_ROW = (
    PoisonBatch,
    CursorMismatch,
    InvalidRow,  # raised where the quarantine has no room
    UsageError,
    Retry,
    SinkUnavailable,
    SourceUnavailable,
    UnsupportedStatement,
)

#: Beginnings of SQLSTATEs that concern the statement, the session or the server: no other row would pass.
_NOT_OF_A_READ_ROW = ("0A", "25", "28", "3D", "3F", "42", "53", "57", "58")

#: Seconds before each repetition of a fetch; a drain waits for the current one.
_FETCH_PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)

OnError = Literal["raise", "quarantine"]


@dataclass
class RetryPlan:
    """The plan by which a failed loop is entered again.

    Attributes:
        step: The name of its step.
        limit: The largest size of the next batch.
        remaining: Rows after which the limit ends: the rows of the failed batch.
        skip_key: The key of the row to quarantine, as JSON values; None to process all rows.
        error: The error to store with that row.
        row: That row as it was read, as JSON values: a row that has changed since is processed; None to ignore changes.
        accepts_transient: Whether a row that cannot be read is quarantined after a transient error, too.
    """

    step: str
    limit: int
    remaining: int
    skip_key: Any = None
    error: BaseException | None = None
    row: Any = None
    accepts_transient: bool = False

    @classmethod
    def from_pace(cls, step: str, pace: dict[str, Any] | None) -> RetryPlan | None:
        """Return the plan that an earlier attempt has stored, or None."""
        limit, remaining = (pace or {}).get("limit"), (pace or {}).get("remaining")
        if isinstance(limit, int) and isinstance(remaining, int) and limit > 0 and remaining > 0:
            return cls(step, limit, remaining)
        return None

    def describe(self) -> str:
        """Return the plan, for the log."""
        return "its row in quarantine" if self.error else f"{self.limit} rows"

    def dump(self) -> dict[str, Any]:
        """Return limit and remaining rows, to be stored with the pace of the step."""
        return {"limit": self.limit, "remaining": self.remaining}

    def passed(self, rows: int) -> bool:
        """Record committed rows. Return whether the loop has passed the failed rows."""
        self.remaining -= rows
        self.limit = min(self.limit * 2, max(self.remaining, 1))
        return self.remaining <= 0


@dataclass(frozen=True)
class FailedBatch:
    """The batch in which a loop failed.

    Attributes:
        step: The name of the step.
        rows: The number of rows, or the size if none were read.
        remaining: Rows after which the limit of an earlier retry ends.
        quarantine_limit: Rows that may be quarantined: a number, or a share of the processed rows; 0 for none.
        key: If the batch has only one row, the key of that row as JSON values; else None.
        batches: Batches of the step that were committed before the failure.
        seconds: Seconds from the start of the batch to its failure.
        pace: The pace of the step, including this failure.
        row: If the batch has only one row, that row as it was read, as JSON values.
        is_unread: Whether the rows could not be read, and their keys can be read alone.
    """

    step: str
    rows: int
    remaining: int
    quarantine_limit: float
    key: Any = None
    batches: int = 0
    seconds: float = 0.0
    pace: dict[str, Any] = field(default_factory=dict)
    row: Any = None
    is_unread: bool = False

    def retry_half(self) -> RetryPlan:
        """Return a plan for half of the rows, or for the same single row."""
        return RetryPlan(self.step, max(1, self.rows // 2), max(self.remaining, self.rows))

    def plan_next_attempt(self, *, one_by_one: bool) -> RetryPlan:
        """Return a plan for the next attempt: half of the rows, or one row.

        The last attempt begins with one row. If that row passes, the run has progressed and has all its attempts again;
        else the run ends with the key of the row that fails.
        """
        half = self.retry_half()
        return replace(half, limit=1) if one_by_one else half

    def retry_without_row(self, error: BaseException, *, if_unchanged: bool) -> RetryPlan:
        """Return a plan that quarantines the row."""
        row = self.row if if_unchanged else None
        return RetryPlan(self.step, 1, max(self.remaining, 1), skip_key=self.key, error=error, row=row)

    def retry_unread_row(self) -> RetryPlan:
        """Return a plan that quarantines the row whose read always ends with a transient error."""
        return RetryPlan(self.step, 1, max(self.remaining, 1), accepts_transient=True)


class BatchRetries:
    """Decides whether, and with which rows, the job function is called again after a batch has failed."""

    def __init__(self) -> None:
        self._count = self._batches_before = 0
        self._skipped: Any = None  # step and key of the last row that was to be quarantined

    async def decide(self, failure: FailedBatch, error: Exception, run: OwnedRun, ledger: Ledger) -> RetryPlan | None:
        """Return the plan for entering the failed loop again, or None if the attempt fails with the error.

        The steps are read from the ledger first: after an error in COMMIT or later, it is unknown whether the batch was
        committed. If it was committed, the loop continues behind it with full batches.

        After a transient error (deadlock, lock timeout, statement timeout) the batch is halved, down to one row. After
        another error, or a transient error that persists, and if the loop has a quarantine, the batch is halved until
        it holds only the failing row; that row is quarantined, unless it has changed meanwhile.

        Raises:
            FencedOut: Another worker owns the run.
        """
        # A closed connection may still be committing at the server: the next attempt reads the ledger. If the run's own
        # connection is open, the error is of another connection, and as any other error of the body.
        if is_unavailable(error) and (not failure.quarantine_limit or run.driver.raw.is_closed()):
            return None
        try:
            await run.checkpoints.reload()
        except (SQLAlchemyError, OSError):
            return None  # the next attempt reads the ledger when it claims the run
        step = run.checkpoints.find_segment(failure.step)
        assert step is not None  # noqa: S101
        is_committed = step.batches != failure.batches
        step.pace = failure.pace
        if isinstance(error, _NOT_OF_A_ROW) or not (is_transient(error) or failure.quarantine_limit):
            return None
        if failure.is_unread and not is_transient(error):
            return None  # the walk itself has looked for the row
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
            return failure.retry_unread_row() if failure.is_unread else None
        rows = run.checkpoints.rows_of(step)
        if await ledger.quarantine.has_room(run.spec.root_id, step.name, failure.quarantine_limit, rows=rows):
            row, before = (failure.step, failure.key), self._skipped
            self._skipped = row
            return failure.retry_without_row(error, if_unchanged=row != before)
        return None

    async def store_pace(self, failure: FailedBatch, run: OwnedRun, max_attempts: int) -> None:
        """Store the pace after the failed batch, and a limit of its rows, for the next attempt."""
        step = run.checkpoints.find_segment(failure.step)
        if step is None or step.batches != failure.batches:
            return  # it was committed
        is_next_last = not run.has_progressed and run.attempt + 1 >= max_attempts
        plan = failure.plan_next_attempt(one_by_one=is_next_last or run.spec.only is not None)
        try:
            await run.store_pace(failure.step, {**failure.pace, **plan.dump()})
        except (SQLAlchemyError, OSError) as error:
            logger.warning("pace not stored: run=%s step=%r error=%s", run.spec.id, failure.step, format_error(error))


class FetchRetries:
    """Repeats the fetch of a source whose error passes by itself: a lost connection, or a timeout, of what it reads.

    The attempt fails only after the last repetition. Errors of the run's own connection are not repeated here: its
    transaction has ended, and `worker.runtime.server_probe` decides whether they count.

    Args:
        reopen: Opens the source again at its cursor, before the fetch that is repeated.
    """

    def __init__(self, reopen: Callable[[StepRecord], Awaitable[None]]) -> None:
        self._reopen = reopen
        self._is_stale = False  # since a fetch has failed
        self._count, self._batch = 0, ""

    async def fetch(
        self, source: Source[T], transaction: BatchTransaction, step: StepRecord, size: int
    ) -> Page[T] | None:
        """Return the next page of a source, which is opened again if its last fetch has failed."""
        if self._is_stale:
            await self._reopen(step)
            self._is_stale = False
        return await source.fetch(transaction, step.cursor, size)

    async def repeat(self, error: Exception, transaction: BatchTransaction, batch: str) -> bool:
        """Roll back, and wait, before a fetch is repeated. Return False if it is not.

        Args:
            error: The error of the fetch.
            transaction: The transaction of the batch.
            batch: The batch, for the log.
        """
        if batch != self._batch:
            self._count, self._batch = 0, batch
        passes = any(isinstance(cause, ConnectionError | TimeoutError) for cause in iter_causes(error))
        if not passes or is_unavailable(error) or is_transient(error) or self._count >= len(_FETCH_PAUSES):
            return False
        await transaction.roll_back()
        self._is_stale = True
        seconds = random.uniform(0.5, 1) * _FETCH_PAUSES[self._count]  # noqa: S311 - no secret
        self._count += 1
        logger.warning("fetch repeated: %s seconds=%.1f error=%s", batch, seconds, format_error(error))
        await asyncio.sleep(seconds)
        return True


def may_blame_row(error: Exception) -> bool:
    """Return whether one row may be the reason why a read has failed, for an error that is not transient."""
    if isinstance(error, LonghaulError) or is_unavailable(error):
        return False
    return not (sqlstate(error) or "").startswith(_NOT_OF_A_READ_ROW)


def ensure_not_poison(run: OwnedRun, max_attempts: int, name: str, rows: int, keys: list[Any]) -> None:
    """Raise `PoisonBatch` for the first batch of an attempt that exceeds the allowed number.

    Each earlier attempt ended when its worker died, without a commit: the workers died in this batch.

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
