"""The walk of a job that is tried: each batch runs for real, is compared, and is rolled back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import text

from worker.attempt.attempt import Attempt
from worker.batch.batch import Batch, unwrap
from worker.batch.batch_keys import BatchKeys
from worker.batch.bulk.tracked import TrackedBulk
from worker.batch.page import jsonable
from worker.batch.selection import Selection, describe_wrong_key
from worker.batch.sizing import make_sizer
from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_statements import WalkStatements
from worker.db.engine import Database
from worker.errors import AttemptExit, CursorMismatch, InvalidArguments, UsageError, format_error
from worker.ledger.run_connection import RunConnection
from worker.plan.changes import Before, RowChange, find_changes, read_before
from worker.plan.loop_plan import NoSkippedRows

_MOST_EMPTY_PAGES = 1_000
_SELECT_ONE = text("SELECT 1")  # begins the observer's transaction


class TrialEnds(AttemptExit):
    """Enough batches were tried. The message is the reason, or empty."""


@dataclass(frozen=True)
class BatchTrial:
    """One batch that was run and rolled back.

    Attributes:
        step: The step.
        kind: The kind of the loop.
        number: The number of the batch in its loop, from 1.
        rows: Its rows.
        first_key: The key of the first row.
        last_key: The key of the last row.
        seconds: The time of the read and the body.
        changes: The rows that it would change.
        counts: The number of changes of each table, with those of triggers and cascades.
        unshown: Tables whose changed rows are not, or not all, in `changes`, because there are too many.
        rejected: Of each row that would be quarantined because the source cannot hand it out, the reason.
    """

    step: str
    kind: str
    number: int
    rows: int
    first_key: Any
    last_key: Any
    seconds: float
    changes: list[RowChange] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unshown: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


@dataclass
class TrialState:
    """The state that the loops of one trial share.

    Attributes:
        attempt: The attempt, whose database is read-only.
        writer: The database of the batches.
        remaining: Batches that may still run.
        rows: Rows in a batch.
        selection: The part of each walk; None for all of it.
        key: The key of the only row; None for all rows.
        batches: The batches so far.
        open_walk: The loop that the job is in.
    """

    attempt: Attempt
    writer: Database
    remaining: int
    rows: int | None
    selection: Selection | None
    key: list[Any] | None
    batches: list[BatchTrial] = field(default_factory=list)
    open_walk: TrialWalk | None = None


class TrialWalk:
    """Stands for a walk whose batches are rolled back.

    Args:
        trial: The trial.
        kind: The kind of the loop.
        source: Its source.
        options: Its options.
    """

    def __init__(self, trial: TrialState, kind: str, source: Any, options: Mapping[str, Any]) -> None:
        self._trial = trial
        self._kind = kind
        self._source = source
        self._options = options
        self._step: str | None = None
        self._run: RunConnection | None = None
        self._transaction: BatchTransaction | None = None
        self._page: Page[Any] = Page()
        self._bounds = Bounds()
        self._before = Before({}, 0)
        self._cursor: Any = None
        self._number = 0
        self._rows = 0
        self._began_at = 0.0
        self._is_over = False

    def __aiter__(self) -> TrialWalk:
        return self

    async def __aenter__(self) -> TrialWalk:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await (self.leave() if kind is None else self.close())

    async def __anext__(self) -> Batch[Any]:
        try:
            return await self._next()
        except BaseException:
            await self.close()
            raise

    async def run(self) -> int:
        """Try the ranges of a sweep. Return the rows of those that were tried."""
        before = sum(batch.rows for batch in self._trial.batches)
        async for _ in self:
            raise UsageError(f"{self._kind}: this source hands out rows, which need a loop")
        return sum(batch.rows for batch in self._trial.batches) - before

    async def leave(self) -> None:
        """Show and roll back the last batch of a loop that the job has left."""
        try:
            await self._show()
        finally:
            await self.close()

    async def close(self) -> None:
        """Roll back, and close the connection."""
        self._is_over = True
        if self._trial.open_walk is self:
            self._trial.open_walk = None
        run, self._run, self._transaction = self._run, None, None
        try:
            await self._source.close()
        finally:
            if run is not None:
                await run.connection.rollback()
                await run.close()

    async def _next(self) -> Batch[Any]:
        if self._is_over:
            raise StopAsyncIteration
        run = self._run or await self._open()
        await self._show()
        for _ in range(_MOST_EMPTY_PAGES):
            if self._trial.remaining <= 0:
                raise TrialEnds
            if self._bounds.is_empty:
                break
            transaction = self._begin()
            page = await self._source.fetch(transaction, self._cursor, self._size)
            if page is None:
                break
            self._page, self._rows = page, len(page.rows)
            if page.rejected and self._options.get("on_error") != "quarantine":
                raise page.rejected[0].error  # as the run would
            self._before = await read_before(run.driver.raw)
            if page.change is not None:
                self._rows = await page.change(transaction)
                await self._show()
            elif page.rows:
                return self._make_batch(transaction, page)
            elif page.rejected:
                await self._show()
            else:
                await self._roll_back()
            if page.is_last:
                break
        await self.close()
        raise StopAsyncIteration

    async def _open(self) -> RunConnection:
        trial = self._trial
        if trial.open_walk is not None:
            await trial.open_walk.leave()
        trial.open_walk = self
        name = self._step = trial.attempt.step_name(self._kind, self._options.get("name"))
        self._size = (
            trial.rows or make_sizer(self._options.get("size"), trial.attempt.settings.batch, kind=self._kind).size
        )
        self._run = RunConnection("trial", await trial.writer.engine.connect())
        await self._run.attach_driver()
        self._bounds = await self._open_source(
            OpenStep(
                run_id="trial",
                name=name,
                cursor=None,
                last=None,
                is_new=True,
                count_exactly=False,
                only_keys=None if trial.key is None else [trial.key],
                connection=self._run.connection,
                share=0.0,
                skipped=NoSkippedRows(),
                settings=trial.attempt.settings,
                selection=trial.selection,
                is_trial=True,
            )
        )
        await self._run.connection.rollback()
        return self._run

    async def _open_source(self, step: OpenStep) -> Bounds:
        """Open the source.

        Raises:
            InvalidArguments: --key is no key of this loop.
        """
        try:
            bounds: Bounds = await self._source.open(step)
        except CursorMismatch as error:
            if self._trial.key is None or not error.key:
                raise
            raise InvalidArguments(describe_wrong_key("--key", self._trial.key, error.key)) from None
        return bounds

    def _begin(self) -> BatchTransaction:
        self._number += 1
        self._began_at = time.monotonic()
        name = f"batch {self._number} of step {self._step!r} of the trial"
        self._transaction = BatchTransaction(cast(Any, self._run), name)
        return self._transaction

    def _make_batch(self, transaction: BatchTransaction, page: Page[Any]) -> Batch[Any]:
        attempt = self._trial.attempt
        batch = attempt.settings.batch
        return Batch(
            page.rows,
            transaction,
            TrackedBulk(attempt.calls, "batch.bulk", None, transaction, batch, self._trial.writer),
            number=self._number,
            first_key=unwrap(page.first_key),
            last_key=unwrap(page.last_key),
            keys=BatchKeys("trial", self._step or "", page, self._cursor),
        )

    async def _show(self) -> None:
        """Record what the open batch has changed, and roll it back."""
        transaction, page, trial = self._transaction, self._page, self._trial
        if transaction is None:
            return
        await trial.attempt.calls.check_awaited()
        raw = await transaction.driver()
        transaction.ensure_not_ended()
        await raw.execute("SET CONSTRAINTS ALL IMMEDIATE")  # what the commit would check
        seconds = time.monotonic() - self._began_at
        keyset = self._find_keyset()
        async with trial.attempt.database.connection() as connection:
            observer = (await connection.get_raw_connection()).driver_connection
            await connection.execute(_SELECT_ONE)
            keys = [] if keyset is None else page.row_keys()
            changes = await find_changes(raw, observer, self._before, keyset, keys)
        if not self._rows and not changes.counts and not page.rejected:
            await self._roll_back()  # a range of a sweep in which no row matches
            return
        trial.batches.append(
            BatchTrial(
                step=self._step or "",
                kind=self._kind,
                number=self._number,
                rows=self._rows,
                first_key=jsonable(unwrap(page.first_key)),
                last_key=jsonable(unwrap(page.last_key)),
                seconds=seconds,
                changes=changes.rows,
                counts=changes.counts,
                unshown=changes.unshown,
                rejected=[format_error(rejected.error) for rejected in page.rejected],
            )
        )
        trial.remaining -= 1
        await self._roll_back()

    def _find_keyset(self) -> Any:
        describe: Callable[[int], WalkStatements] | None = getattr(self._source, "describe", None)
        return describe(self._size).keyset if describe is not None and not self._bounds.is_empty else None

    async def _roll_back(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.roll_back()
        if self._page.cursor is not None:
            self._cursor = self._page.cursor
        self._page = Page()
