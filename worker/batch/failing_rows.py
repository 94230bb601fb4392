"""Rows that fail: quarantines the one row whose body has failed, and finds the one row that cannot be read.

A row cannot be read if the driver or a type cannot decode a value, if an expression fails, or if its page is damaged.
The read of a batch fails as a whole, and its rows have no keys then. With `on_error="quarantine"` the walk halves the
batch, without a call of the job: its body has not run. If a batch of one row cannot be read, the source reads its key
alone, as the server writes it, and then the row by exactly this key. Only a row that fails there is quarantined, so
that a row which was deleted or corrected meanwhile is not, nor its neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from sqlalchemy import Select

from worker.batch.batch_retry import FailedBatch, RetryPlan, may_blame_row
from worker.batch.page import jsonable
from worker.batch.source import Page
from worker.batch.transaction import BatchTransaction
from worker.db.engine import Database
from worker.db.errors import is_transient, is_unavailable
from worker.errors import NonRetryableError
from worker.ledger import OwnedRun, StepRecord
from worker.ledger.quarantine import Quarantine
from worker.ledger.records import RangeRecord

#: Consecutive reads of one row that fail, while the row can be read by its key, after which the walk fails.
_MAX_VAIN_READS = 20


@runtime_checkable
class KeyedSource(Protocol):
    """A source that can read the keys of its rows alone, as JSON values."""

    async def list_keys(self, transaction: BatchTransaction, cursor: Any, size: int) -> list[list[Any]]:
        """Return the keys of the rows that `fetch` would read."""

    async def find_unreadable(
        self, transaction: BatchTransaction, cursor: Any, blames_row: Callable[[Exception], bool]
    ) -> Page[Any] | None:
        """Return a page that passes over the next row, if that row cannot be read; else None.

        Args:
            transaction: The transaction in which the row is quarantined.
            cursor: The cursor of the last committed page.
            blames_row: Returns whether an error is the row's. All others are raised.

        Returns:
            A page without rows, with the cursor behind the row and its key in `row_keys`.
        """


class FailingRows:
    """Quarantines the rows of one walk that fail alone.

    Args:
        source: The source of the walk.
        run: The run.
        step: The step of the walk.
        database: The database of the ledger.
        limit: The largest number of quarantined rows, or their largest share; 0 for none.

    Attributes:
        step: The step, or the range of it that is walked.
    """

    def __init__(self, source: object, run: OwnedRun, step: StepRecord, database: Database, limit: float) -> None:
        self._source = source if isinstance(source, KeyedSource) else None
        self._run = run
        self.step = step
        self._database = database
        # Rows that are processed again were in the quarantine before: all of them may return.
        self._limit = math.inf if limit and run.spec.only is not None else limit
        self._vain_reads = 0
        self._quarantined = 0
        self._row_as_read: Any = None  # the only row of the open batch, as JSON values, before the body has changed it

    @property
    def are_unreadable_quarantined(self) -> bool:
        """Whether rows of this walk that cannot be read are quarantined."""
        return self._source is not None and self._limit > 0

    async def set_aside(self, transaction: BatchTransaction, page: Page[Any], retry: RetryPlan | None) -> bool:
        """Quarantine the row whose body has failed, if the page holds only this row. Return whether it does.

        Another session may have deleted the row: it is found by its key, so that its neighbour is not quarantined. Or
        another session may have corrected it.
        """
        self._row_as_read = None
        if retry is None or not self._limit:
            return False
        row = jsonable(page.rows[0]) if len(page.rows) == 1 or retry.skip_key is not None else None
        self._row_as_read = row
        if retry.skip_key is None or retry.error is None:
            return False
        skip_key, retry.skip_key = retry.skip_key, None
        if any(key != skip_key for key in page.row_keys()) or (retry.row is not None and retry.row != row):
            return False
        await self._add(await transaction.driver(), skip_key, retry.error, row)
        return True

    async def _add(self, raw: Any, key: list[Any], error: BaseException, row: Any) -> None:
        """Quarantine a row. Raise its error if the hands of the walk have filled the quarantine meanwhile."""
        quarantine, rows = self._run.quarantine, self._run.checkpoints.rows_of(self.step)
        is_shared = isinstance(self.step, RangeRecord)
        if is_shared and not await quarantine.has_room_for_one(raw, self.step.name, self._limit, rows=rows):
            raise error
        await quarantine.add_row(raw, self.step, key, error, row)
        self._quarantined += 1

    def take_count(self) -> int:
        """Return the number of rows that were quarantined since the last call."""
        count, self._quarantined = self._quarantined, 0
        return count

    async def ensure_room_for_rejected(self, page: Page[Any]) -> None:
        """Raise the error of the first rejected row, unless the quarantine has room for all of them."""
        count, error = len(page.rejected), page.rejected[0].error
        if not self._limit:
            raise error
        read = len(page.rows) + count
        if await self._has_room(count=count, read=read):
            return
        error.add_note(f"The quarantine's limit of {self._limit} has no room for {count} rows of {self.step.name!r}.")
        raise error

    async def _has_room(self, *, count: int = 1, read: int | None = None) -> bool:
        rows, name = self._run.checkpoints.rows_of(self.step), self.step.name
        quarantine = Quarantine(self._database)
        return await quarantine.has_room(self._run.spec.root_id, name, self._limit, rows=rows, count=count, read=read)

    async def ensure_share(self) -> None:
        """Raise `NonRetryableError` if the walk has ended, and more than the allowed share of its rows is quarantined.

        While it runs, the number of its rows is an estimate of the planner, which can be far too high.
        """
        run, limit, name = self._run, self._limit, self.step.name
        if not 0 < limit < 1 or run.spec.only is not None or run.spec.hand is not None:
            return
        rows = run.checkpoints.rows_of(self.step)
        known = await Quarantine(self._database).count_step_rows(run.spec.root_id, name)
        if known > limit * (rows + known):
            raise NonRetryableError(
                f"step {name!r} of run {run.spec.id}: {known:,} of {rows + known:,} rows are quarantined, more than "
                f"quarantine_limit={limit} allows; the walk has processed all others. Correct these rows, process them "
                f"with `worker retry {run.spec.id} --quarantined`, and end the run with `worker retry {run.spec.id}`"
            )

    async def settle(self, transaction: BatchTransaction, page: Page[Any]) -> None:
        """Quarantine the rejected rows of a page, and delete retried rows from the quarantine of their own run."""
        raw, quarantine = await transaction.driver(), self._run.quarantine
        if self._run.spec.only is not None:
            done = [*page.row_keys(), *(rejected.key for rejected in page.rejected)]
            await quarantine.delete_retried_rows(raw, done)
        for rejected in page.rejected:
            await self._add(raw, rejected.key, rejected.error, rejected.row)

    def describe(
        self, page: Page[Any], retry: RetryPlan | None, *, rows: int, seconds: float, pace: dict[str, Any]
    ) -> FailedBatch:
        """Return the description of the open batch, which has failed.

        Args:
            page: Its rows; an empty page if they were not read.
            retry: The plan that the loop was entered with.
            rows: The number of rows, or the size if none were read.
            seconds: Seconds from its start to its failure.
            pace: The pace of the step, including this failure.
        """
        keys = page.row_keys() if self._limit or rows == 1 else []
        is_unread = not page.rows and not page.last_key and self.are_unreadable_quarantined
        # A join can repeat a row: its repetitions share one key, and are quarantined together.
        is_single = bool(keys) and all(key == keys[0] for key in keys)
        return FailedBatch(
            self.step.name,
            1 if is_single else rows,
            0 if retry is None else retry.remaining,
            quarantine_limit=self._limit if keys or is_unread else 0,
            key=keys[0] if is_single else None,
            batches=self.step.batches,
            seconds=seconds,
            pace=pace,
            row=self._row_as_read if is_single and self._limit else None,
            is_unread=is_unread,
        )

    def blames_row(self, error: Exception, *, accepts_transient: bool) -> bool:
        """Return whether one row may be the reason for an error of a read.

        Args:
            error: The error.
            accepts_transient: Whether a transient error counts: it has persisted over many attempts.
        """
        if is_transient(error):
            return accepts_transient
        return may_blame_row(error)

    async def read_range(self, transaction: BatchTransaction, size: int) -> Page[Any]:
        """Return a page with the first and the last key of the rows that cannot be read, for the error of the run."""
        if self._source is None:
            return Page()
        try:
            keys = await self._source.list_keys(transaction, self.step.cursor, size)
        except Exception:  # noqa: BLE001 - the error of the read says more
            return Page()
        return Page(first_key=keys[0], last_key=keys[-1]) if keys else Page()

    async def set_unreadable_aside(
        self, transaction: BatchTransaction, error: Exception, *, accepts_transient: bool
    ) -> Page[Any] | None:
        """Quarantine the row behind the cursor, if it is still there and cannot be read.

        Returns:
            The page that passes over it. A page without a cursor and a key if the row can be read now, and None if the
            quarantine is full.

        Raises:
            Exception: The read fails again and again, although the row can be read by its key.
        """
        assert self._source is not None  # noqa: S101
        found: list[Exception] = []

        def blames_row(raised: Exception) -> bool:
            found.append(raised)
            return self.blames_row(raised, accepts_transient=accepts_transient)

        page = await self._source.find_unreadable(transaction, self.step.cursor, blames_row)
        if page is None:
            await transaction.roll_back()
            self._vain_reads += 1
            if self._vain_reads > _MAX_VAIN_READS:
                raise error
            return Page()
        if not await self._has_room():
            return None
        raw = await transaction.driver()
        for key in page.row_keys():
            await self._add(raw, key, found[-1], None)
        self._vain_reads = 0
        return page


async def probe_row(
    transaction: BatchTransaction,
    row: Select[Any],
    values: Mapping[str, Any],
    blames_row: Callable[[Exception], bool],
    *,
    lock: Select[Any] | None = None,
) -> bool:
    """Return whether the row of a statement exists and cannot be read. The transaction can be used afterwards.

    Args:
        transaction: The transaction.
        row: The statement that reads the row by its key.
        values: The parameters of both statements.
        blames_row: Returns whether an error is the row's. All others are raised.
        lock: A statement that locks the row without reading it, so that it stays as it is until the transaction ends.
    """
    raw = await transaction.driver()
    if lock is not None and not (await transaction.session.execute(lock, values)).all():
        return False
    savepoint = raw.transaction()
    await savepoint.start()
    try:
        (await transaction.session.execute(row, values)).all()
    except Exception as error:
        if is_unavailable(error) or not blames_row(error):
            raise
        await savepoint.rollback()
        return True
    await savepoint.commit()
    return False
