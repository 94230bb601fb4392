"""The one engine of all durable loops: it commits, applies operator commands, fetches a page, and yields it.

`Walk.__anext__` is the loop. Everything that differs from one kind of loop to another is in a `Source`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Generic, TypeVar

from worker.batch.batch import Batch, unwrap
from worker.batch.batch_keys import BatchKeys
from worker.batch.batch_retry import FailedBatch, FetchRetries, OnError, RetryPlan, ensure_not_poison
from worker.batch.bulk.tracked import TrackedBulk
from worker.batch.failing_rows import FailingRows
from worker.batch.key_progress import WalkShare
from worker.batch.loop_exit import swallowed_error_message
from worker.batch.loop_object import LoopObject
from worker.batch.page import weigh_rows
from worker.batch.ranges import Parallel, RangedSource, SharedWalk
from worker.batch.sizing import BatchSizer, Size, make_sizer
from worker.batch.source import Bounds, Page, Source
from worker.batch.step import describe_place, open_step, reopen_source
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_host import Progress, WalkHost
from worker.errors import LonghaulError, RangeLost
from worker.ledger import OwnedRun, RangeRecord, StepRecord

T = TypeVar("T")

_NO_PAGE: Page[Any] = Page()


class Walk(LoopObject[Batch[T]], Generic[T]):
    """One durable loop: `async for batch in walk`, or `async with walk as batches: async for batch in batches`.

    The second form commits the last batch when the block ends. In the first form, if the job exits the loop by `break`,
    the last batch is committed when the job opens another loop or scope, or returns.

    Args:
        host: The attempt that the walk runs in.
        source: The source of its pages.
        size: Rows in a batch, or "auto"; None for `batch.size` of the settings.
        name: The name of the step; None for a name made from kind and order.
        count_exactly: Whether to count the rows before the walk begins.
        on_error: "quarantine" to quarantine rows that cannot be processed.
        quarantine_limit: The largest number of these rows, or their largest share of all rows.
        parallel: The hands among which the walk is divided; None for one hand.
    """

    def __init__(
        self,
        host: WalkHost,
        source: Source[T],
        *,
        size: Size | None = None,
        name: str | None = None,
        count_exactly: bool = False,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__()
        self._host = host
        self._source = source
        self._name = name
        self._count_exactly = count_exactly
        self._quarantine_limit = quarantine_limit if on_error == "quarantine" else 0
        self._sizer: BatchSizer = make_sizer(size, host.settings.batch, kind=source.kind)
        self._bounds = Bounds()
        self._parallel = parallel
        self._shared: SharedWalk | None = None
        self._retry: RetryPlan | None = None
        self._step: StepRecord | None = None
        self._owned_run: OwnedRun  # set by the first call of __anext__, as the step
        self._failing: FailingRows  # set by the first call of __anext__
        self._transaction: BatchTransaction | None = None
        self._page: Page[T] = _NO_PAGE
        self._rows = self._size = 0  # rows of the open batch, and the rows that it was meant to have
        self._began_at, self._mark = 0.0, 0  # the mark is of the last tracked call before the open batch
        self._share = WalkShare()

    # --- the loop

    async def __anext__(self) -> Batch[T]:
        """Commit the previous batch, apply operator commands and throttles, and return the next batch.

        Raises:
            StopAsyncIteration: The walk has ended.
        """
        try:
            if self._step is None:
                await self._begin()
            else:
                await self._commit()
            while await self._enter_segment():
                await self._host.boundary(resumable=self._bounds.is_resumable, table=self._bounds.table)
                transaction = self._open_batch()
                page = await self._fetch(transaction)
                if page is None:
                    await self._mark_done()
                    continue
                self._take(page)
                if await self._is_for_the_job(page):
                    return self._make_batch(transaction, page)
                await self._commit()
            await self._failing.ensure_share()
            await self._end()
        except BaseException:
            await self.fail()
            raise
        raise StopAsyncIteration

    async def __aenter__(self) -> Walk[T]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._is_finished or self._step is None:
            return
        if error is not None:
            await self.fail()
        else:
            # The only remaining case is an exception that was caught between loop and block.
            self.was_left_by_break = self.was_left_by_break is not False
            await self.leave()

    async def run(self) -> int:
        """Walk to the end, for a source whose pages need no body. Return the rows processed by all attempts."""
        async for _ in self:
            raise LonghaulError(f"{self.kind}: this source hands out rows, which need a loop")
        return self.step.rows

    async def leave(self) -> None:
        """Settle a loop that the job has exited: after `break` or `return`, commit its last batch and end the step.

        Raises:
            LonghaulError: An exception ended the loop, and the job caught it.
        """
        if self._is_finished or self._step is None:
            return
        if not self.was_left_by_break:
            await self.fail()
            raise LonghaulError(swallowed_error_message(self._host.broken))
        try:
            if self._transaction is not None:
                await self._commit(done=self._shared is None)
            elif self._shared is None:
                await self._mark_done()
            if self._shared is not None:
                await self._shared.leave()
            await self._end()
        except BaseException:
            await self.fail()
            raise

    async def fail(self) -> None:
        """Roll the open batch back, and record its place for the error of the run."""
        if self._is_finished:
            return
        self._host.where = self._place
        self._host.broken = f"{self.kind} at {self._place or 'its beginning'}"
        transaction, self._transaction = self._transaction, None
        if self._step is not None and transaction is not None:
            self._sizer.note_failure(self._size, time.monotonic() - self._began_at)
            self._host.failure = self._describe_failure()
        try:
            if transaction is not None:
                await transaction.roll_back()
            elif self._step is not None:
                await self._owned_run.roll_back()  # begun for the next batch
        finally:
            await self._end()

    @property
    def kind(self) -> str:
        """The kind of the walk, from its source."""
        return self._source.kind

    @property
    def step(self) -> StepRecord:
        """The step in the ledger."""
        assert self._step is not None  # noqa: S101
        return self._step

    # --- the steps of the loop

    async def _begin(self) -> None:
        """Find or create the step in the ledger, and open the source."""
        host = self._host
        await host.enter_loop(self)
        run = self._owned_run = await host.durable_run()
        name = host.step_name(self.kind, self._name)
        self._retry = host.take_entry(name)
        if self._name is None:
            host.names.add_statement(f"{self.kind} {getattr(self._source, 'text', self._source.fingerprint)}")
        options: dict[str, Any] = {"is_named": self._name is not None, "count_exactly": self._count_exactly}
        options |= {"accepts_change": host.accepts_statement_change, "parallel": self._parallel}
        options["size"] = self._sizer.size
        step, self._bounds = await open_step(run, self._source, name, settings=host.settings, **options)
        self._step = step
        if step.ranges and not step.done and isinstance(self._source, RangedSource):
            self._shared = SharedWalk(host, run, self._source, step, self._parallel, self._share)
        self._fetches = FetchRetries(partial(reopen_source, run, self._source, settings=host.settings))
        self._failing = FailingRows(self._source, run, step, host.database, self._quarantine_limit)
        pace = step.pace or {}
        self._sizer.load({"row_bytes": self._bounds.row_bytes, **pace})
        self._retry = self._retry or RetryPlan.from_pace(name, pace)
        self._share.load(pace, f"step={name} run={run.spec.id}", is_counted=self._count_exactly or bool(run.spec.only))

    async def _enter_segment(self) -> bool:
        """Go to the next range of a shared walk if the current one is done. Return False at the end of the walk."""
        if self._shared is not None and (isinstance(self.step, RangeRecord) or not self.step.done):
            before, self._step = self.step, await self._shared.enter()
            if self._step is not before:
                self._failing.step = self._step
                self._retry = self._retry or RetryPlan.from_pace(self._step.name, self._step.pace or {})
        return not self.step.done

    def _open_batch(self) -> BatchTransaction:
        self._size = self._sizer.choose(self._host.hands.pace, None if self._retry is None else self._retry.limit)
        self._began_at, self._host.where, self._mark = time.monotonic(), None, self._host.calls.mark
        return self._open_transaction()

    def _open_transaction(self) -> BatchTransaction:
        self._page, self._rows = _NO_PAGE, 0
        self._transaction = BatchTransaction(self._owned_run, self._batch_name)
        return self._transaction

    async def _fetch(self, transaction: BatchTransaction) -> Page[T] | None:
        """Return the next page; a page without rows if it cannot be read, and is halved or passed over."""
        try:
            return await self._fetches.fetch(self._source, transaction, self.step, self._size)
        except Exception as error:
            if await self._fetches.repeat(error, transaction, self._batch_name):
                self._transaction = None
                return _NO_PAGE
            accepts_transient = self._retry is not None and self._retry.accepts_transient
            if not self._failing.blames_row(error, accepts_transient=accepts_transient):
                raise
            await transaction.roll_back()
            page = None
            if self._failing.are_unreadable_quarantined and self._size > 1:
                self._retry = self._describe_failure().retry_half()
                self._transaction = None
                return _NO_PAGE
            if self._failing.are_unreadable_quarantined:
                again = self._open_transaction()
                page = await self._failing.set_unreadable_aside(again, error, accepts_transient=accepts_transient)
            if page is None:
                self._page = await self._failing.read_range(self._open_transaction(), self._size)
                raise
            return page

    def _take(self, page: Page[T]) -> None:
        """Set the page of the open batch."""
        self._page, self._rows = page, len(page.rows)
        self._size = page.examined or len(page.rows) or self._size
        if page.rows or page.change is not None:
            keys = [unwrap(page.first_key or page.last_key), unwrap(page.last_key)]
            ensure_not_poison(self._owned_run, self._host.max_attempts, self._batch_name, self._size, keys)

    async def _is_for_the_job(self, page: Page[T]) -> bool:
        """Return whether the job's body processes these rows: False for a sweep, and for a row that is quarantined."""
        transaction = self._transaction
        if transaction is None:
            return False
        if page.rejected:
            await self._failing.ensure_room_for_rejected(page)
        if page.change is not None:
            self._rows = await page.change(transaction)
            return False
        if not page.rows:
            if page.cursor is None and not transaction.is_open:
                self._transaction = None  # nothing was processed: only repeat the boundary
            return False
        if await self._failing.set_aside(transaction, page, self._retry):
            self._rows = 0
            return False
        return True

    def _make_batch(self, transaction: BatchTransaction, page: Page[T]) -> Batch[T]:
        host = self._host
        return Batch(
            page.rows,
            transaction,
            TrackedBulk(host.calls, "batch.bulk", None, transaction, host.settings.batch, host.database),
            number=self._number,
            first_key=unwrap(page.first_key),
            last_key=unwrap(page.last_key),
            keys=BatchKeys(self._owned_run.spec.root_id, self.step.name, page, self.step.cursor),
        )

    async def _commit(self, *, done: bool = False) -> None:
        """Commit the open batch: its writes and its cursor together."""
        transaction, page, step, run = self._transaction, self._page, self.step, self._owned_run
        if transaction is None:
            return
        if page.cursor is not None and page.cursor == step.cursor:
            raise LonghaulError(
                f"{self.kind}: batch {self._number} ends at {page.cursor}, where the one before it did: the walk would "
                f"never end, because its key does not order the rows"
            )
        await self._host.calls.check_awaited(self._mark)
        if page.check is not None:
            page.check()
        if page.rejected or run.spec.only is not None:
            await self._failing.settle(transaction, page)
        done = done or page.is_last
        batches = int(self._rows > 0 or page.cursor is not None)
        moved = {"cursor": page.cursor, "rows": self._rows, "done": done, "batches": batches}
        begin_next = self._bounds.begins_in_transaction and not done
        if not await self._write(transaction, begin_next, pace=self._make_pace(page), **moved):
            return
        step.rows, step.batches = step.rows + self._rows, step.batches + batches
        step.cursor, step.done = step.cursor if page.cursor is None else page.cursor, done
        if page.after_commit is not None:
            await page.after_commit()
        self._note_committed(page)

    def _note_committed(self, page: Page[T]) -> None:
        """Adapt the size of the next batch to the time of the committed one, and report it."""
        step, seconds = self.step, time.monotonic() - self._began_at
        rows, share, by = (step.rows, page.share, "position") if self._shared is None else self._shared.measure()
        if self._retry is None:
            self._sizer.note(self._size, seconds, weigh_rows(page.rows))
        elif self._retry.passed(max(self._size, self._rows)):
            self._retry = None
        self._host.report(
            Progress(
                step=step.name,
                kind=self.kind,
                rows=rows,
                total=step.total,
                share=self._share.note(share, rows, step.total, by=by, done=step.done and self._shared is None),
                is_estimate=self._share.is_estimate,
                share_by=self._share.by,
                batches=step.batches,
                batch_size=self._rows,
                batch_seconds=seconds,
                last_key=unwrap(page.last_key),
                ranges=None if self._shared is None else self._shared.state,
                quarantined=self._failing.take_count(),
            )
        )

    def _make_pace(self, page: Page[Any]) -> dict[str, Any]:
        """Return the state for the next attempt: sizes, the limit of a retry, and the processed share."""
        rows = self.step.rows + (self._rows if page is self._page else 0)  # those of a batch that failed are not done
        share, retry = self._share.dump(page.share, rows, self.step.total), self._retry
        return {**self._sizer.dump(), **share, **({} if retry is None else retry.dump())}

    async def _mark_done(self) -> None:
        """Store the end of the step, if there is no batch to store it with."""
        if self._transaction is not None:
            await self._transaction.roll_back()
        transaction = self._open_transaction()
        if await self._write(transaction, begin_next=False, cursor=None, rows=0, done=True, batches=0):
            self.step.done = True

    async def _write(self, transaction: BatchTransaction, begin_next: bool, **moved: Any) -> bool:
        """Commit a transaction with its checkpoint. Return False if another hand has the range, and does its rows."""
        try:
            move = partial(self._owned_run.checkpoints.move, step=self.step, **moved)
            await transaction.commit(move, begin_next=begin_next)
        except RangeLost:
            await transaction.roll_back()
            self._owned_run.ranges.leave()
            self._transaction = None
            return False
        self._transaction = None
        return True

    async def _end(self) -> None:
        """Close the source, and tell the attempt that this loop has ended."""
        if not self._is_finished:
            self._is_finished = True
            self._host.leave_loop(self)
            await self._source.close()

    @property
    def _number(self) -> int:
        """The number of the open batch."""
        return self.step.batches + 1

    @property
    def _batch_name(self) -> str:
        return f"batch {self._number} of step {self.step.name!r} of run {self._owned_run.spec.id}"

    @property
    def _place(self) -> str | None:
        """The open batch, for the error of a job that fails in it; None if none is open."""
        if self._step is None or self._transaction is None:
            return None
        return describe_place(self._step, self._number, self._page)

    def _describe_failure(self) -> FailedBatch:
        rows, seconds = min(self._rows or self._size, self._size), time.monotonic() - self._began_at
        pace = self._make_pace(_NO_PAGE)
        return self._failing.describe(self._page, self._retry, rows=rows, seconds=seconds, pace=pace)
