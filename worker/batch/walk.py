"""What the three kinds of loop have in common: a step in the ledger, a batch that is open, a boundary."""

from __future__ import annotations

import json
import time
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.batch import Batch, unwrap
from worker.batch.batch_retry import FailedBatch, RetryPlan
from worker.batch.bulk import Bulk
from worker.batch.catalog import estimate_rows, table_name
from worker.batch.key_progress import Position
from worker.batch.keyset import SIZE, Keyset
from worker.batch.options import Count
from worker.batch.page import NO_PAGE, Page, jsonable
from worker.batch.sizing import BatchSizer, FixedSizer, Size, make_sizer
from worker.batch.transaction import BatchTransaction
from worker.cancellation import run_to_completion
from worker.db.engine import Database
from worker.db.sessions import roll_back
from worker.errors import LonghaulError, PoisonBatch, UsageError
from worker.ledger import OwnedRun, StepRecord, StepSpec
from worker.settings import Settings


@dataclass(frozen=True)
class Progress:
    """How far a loop is, after a batch."""

    step: str
    kind: str
    rows: int
    total: int | None
    #: Part of the walk that is done, 0 to 1: by the key's position, or by rows; None where neither can be told.
    share: float | None
    batches: int
    batch_size: int
    batch_seconds: float
    last_key: Any


class WalkHost(Protocol):
    """What a loop needs from the job that it runs in."""

    settings: Settings
    database: Database
    #: The batch that failed, in words; None while none has.
    where: str | None
    #: The loop that failed, in words: a job that catches its error must not end well.
    broken: str | None
    #: Where it failed, for another entry; None where no batch was open.
    failure: FailedBatch | None

    def take_entry(self, step: str) -> RetryPlan | None:
        """Return how a loop is entered again, once; None where it is not."""

    async def durable_run(self) -> OwnedRun:
        """Return the run in the ledger, begun at the first call."""

    async def enter_loop(self, loop: Walk) -> None:
        """Settle the loop before this one; refuse one loop inside another."""

    def leave_loop(self, loop: Walk) -> None:
        """Forget a loop that has ended."""

    def step_name(self, kind: str, name: str | None) -> str:
        """Return the step's name: the given one, or one made from the order of the loops."""

    def ensure_unique_statement(self, walk: str) -> None:
        """Refuse a second loop without a name over the same statement."""

    async def boundary(self, *, resumable: bool, table: str) -> None:
        """Obey orders and throttles between two batches: raise `AttemptReleased` or `Cancelled`, or wait."""

    def report(self, progress: Progress) -> None:
        """Take note of a committed batch."""

    @property
    def throttled(self) -> bool:
        """Whether the walk may have to wait at a boundary."""

    @property
    def max_attempts(self) -> int:
        """Tries without progress after which the run is dead."""


class Walk(ABC):
    """One durable loop.

    Args:
        host: the job that it runs in.
        name: name of the step; None for one made from kind and order.
        size: rows a batch, or "auto"; None for `batch.size` of the settings.
        count: whether the rows are counted before the walk begins.
    """

    kind = "loop"
    #: Whether a run that leaves its worker here can go on where it was.
    resumable = True
    #: Whether a batch begins with a statement in its transaction, so that BEGIN can go with the COMMIT before it.
    begins_ahead = True
    _keyset: Keyset | None = None

    def __init__(self, host: WalkHost, *, name: str | None, size: Size | None, count: Count) -> None:
        self._host = host
        self._given_name = name
        self._exact = count == "exact"
        self._position: Position | None = None
        self._upper: list[Any] = []  # the walk's last key, where it has one
        self._pace: BatchSizer = make_sizer(size, host.settings.batch, kind=self.kind)
        self._asked = 0  # rows that were asked for in the open batch
        self._entry: RetryPlan | None = None
        self.quarantine_limit: float = 0
        self._run: OwnedRun | None = None
        self._step: StepRecord | None = None
        self._transaction: BatchTransaction | None = None
        self._page = NO_PAGE  # keys of the open batch
        self._rows = 0  # rows of the open batch
        self._began = 0.0
        self._iterator: weakref.ref[object] | None = None
        self._walking = False
        self.finished = False
        #: Set when the job drops the iterator: by `break` or `return`, or by an exception.
        self.left_deliberately: bool | None = None

    @property
    def step(self) -> StepRecord:
        """The step in the ledger."""
        assert self._step is not None  # noqa: S101
        return self._step

    @property
    def run(self) -> OwnedRun:
        """The run in the ledger."""
        assert self._run is not None  # noqa: S101
        return self._run

    @property
    def in_progress(self) -> bool:
        """Whether the job stands inside of this loop: an `async for` holds the iterator, and drops it on leaving."""
        held = self._iterator is not None and self._iterator() is not None
        return not self.finished and (held or self._walking)

    @property
    def where(self) -> str | None:
        """The open batch, for the error of a job that fails in it; None when none is open."""
        if self._step is None or self._transaction is None:
            return None
        place = f"step {self.step.name!r}, batch {self.number}"
        if not self._page.last_key:
            return place
        if not self._page.first_key:
            return f"{place}, up to key {unwrap(self._page.last_key)!r}"
        return f"{place}, keys {unwrap(self._page.first_key)!r} to {unwrap(self._page.last_key)!r}"

    def hold(self, iterator: object) -> None:
        """Remember the iterator by which the job walks, without keeping it alive."""
        if self._iterator is not None:
            raise UsageError(f"{self.kind}: one loop object is for one `async for`; call ctx.{self.kind} again")
        self._iterator = weakref.ref(iterator)

    async def begin(self) -> bool:
        """Find or make the step. Returns False when an earlier try has finished it, or it is none of this run's."""
        await self._host.enter_loop(self)
        self._run = await self._host.durable_run()
        name = self._host.step_name(self.kind, self._given_name)
        self._entry = self._host.take_entry(name)
        only = self._run.spec.only
        if only is not None:
            # The rows of one step alone, one by one: each leaves the quarantine with its own commit.
            self._pace = FixedSizer(1)
        async with OwnTransaction(self._run.connection):
            if only is not None and only[1] != name:
                self._step = await self._pass_over(name)
            else:
                self._step = await self._open(name)
                await self._locate(self._run.connection)
        if self._step.done:
            self.end()
            return False
        return True

    @abstractmethod
    async def _open(self, name: str) -> StepRecord:
        """Find the step in the ledger, or make it, and get ready to walk."""

    async def _pass_over(self, name: str) -> StepRecord:
        """Return a step that has nothing to do, as this run is for the rows of another one."""
        spec = StepSpec(name, self.kind, "", [], named=True)
        return self.run.checkpoints.find_step(spec) or await self.run.checkpoints.open_step(
            spec, upper_bound=None, total=0, done=True
        )

    def spec(self, name: str, statement: str, keyset: Keyset | None) -> StepSpec:
        """Return what the ledger compares a known step with."""
        if self._given_name is None:
            self._host.ensure_unique_statement(f"{self.kind} {statement}")
        return StepSpec(
            name, self.kind, statement, keyset.describe() if keyset else [], named=self._given_name is not None
        )

    @property
    def number(self) -> int:
        """Number of the batch that comes next."""
        return self.step.batches + 1

    def idempotency_key(self) -> str:
        """Return the key of the batch that comes next, the same at each try of it."""
        return f"{self.run.spec.id}:{self.step.name}:{self.number}"

    @property
    def table(self) -> str:
        """The table that is walked, as SQL spells it; empty where a stream has no key."""
        return table_name(self._keyset) if self._keyset is not None else ""

    @property
    def size(self) -> int:
        """Rows of the next batch."""
        return self._pace.size if self._entry is None else min(self._pace.size, self._entry.limit)

    def _behind(self) -> dict[str, Any]:
        """Return the parameters of "behind the cursor"; none before the first batch."""
        if self._keyset is None or self.step.cursor is None:
            return {}
        return self._keyset.values("after", self._keyset.decode(self.step.cursor))

    def _values(self) -> dict[str, Any]:
        """Return the parameters of "behind the cursor, up to the walk's last key, so many rows"."""
        assert self._keyset is not None  # noqa: S101
        return self._keyset.values("upper", self._upper) | {SIZE.key: self.size} | self._behind()

    def open_batch(self) -> BatchTransaction:
        """Return the transaction of a new batch."""
        self._asked = self.size
        self._began = time.monotonic()
        self._host.where = None
        self._page, self._rows = NO_PAGE, 0
        self._transaction = BatchTransaction(self.run)
        return self._transaction

    def batch(self, page: Page) -> Batch[Any]:
        """Return the open batch, with its rows, as the job gets it."""
        assert self._transaction is not None  # noqa: S101
        self._page, self._rows = page, len(page.rows)
        bulk = Bulk(self._transaction, self._host.settings.batch, self._host.database)
        return Batch(
            page.rows,
            self._transaction,
            bulk,
            number=self.number,
            first_key=unwrap(page.first_key),
            last_key=unwrap(page.last_key),
            idempotency_key=self.idempotency_key(),
            row_keys=partial(self._row_keys, page),
        )

    def _row_keys(self, page: Page) -> list[str]:
        before = f"{self.run.spec.id}:{self.step.name}:"
        return [before + json.dumps(key, separators=(",", ":")) for key in page.row_cursors()]

    async def commit(self, *, done: bool = False) -> None:
        """Commit the open batch, its writes and its cursor together."""
        transaction = self._transaction
        if transaction is None:
            return
        cursor = self._page.cursor or None
        try:
            if cursor is not None and cursor == self.step.cursor:
                raise LonghaulError(
                    f"{self.kind}: batch {self.number} ends at {cursor}, where the one before did: this walk would "
                    f"never end; its key does not order the rows"
                )
            await self._write_along(transaction)
            checkpoint = self.run.checkpoints.statement(self.step, cursor=cursor, rows=self._rows, done=done)
            await transaction.commit(checkpoint, begin=self.begins_ahead and not done and not self._host.throttled)
        except BaseException as error:
            await self.fail()
            await self.run.checkpoints.check_fence(error)
            raise
        self._transaction = None
        step = self.step
        step.rows += self._rows
        step.batches += 1
        step.cursor = cursor or step.cursor
        step.done = done
        seconds = time.monotonic() - self._began
        if self._entry is None:
            self._pace.note(self._asked, seconds)
        elif self._entry.passed(max(self._asked, self._rows)):
            self._entry = None
        self._host.report(
            Progress(
                step=step.name,
                kind=self.kind,
                rows=step.rows,
                total=step.total,
                share=self._share(),
                batches=step.batches,
                batch_size=self._rows,
                batch_seconds=seconds,
                last_key=unwrap(self._page.last_key),
            )
        )

    async def _total(self, connection: AsyncConnection, statement: Select[Any]) -> int:
        """Return the rows that a select has: counted, or by the planner's statistics."""
        if not self._exact:
            return await estimate_rows(connection, statement, {})
        counted = select(func.count()).select_from(statement.order_by(None).subquery())
        return int(await connection.scalar(counted) or 0)

    async def _locate(self, connection: AsyncConnection) -> None:
        """Learn between which keys the walk goes, for its progress."""
        if not self._exact and self._keyset is not None and self.step.upper_bound is not None:
            self._position = await Position.between(connection, self._keyset, self.step.upper_bound)

    def _share(self) -> float | None:
        step = self.step
        if step.done:
            return 1.0
        if self._position is not None and step.cursor is not None:
            return self._position.share(step.cursor)
        # The planner's estimate may be low: no more than all, until it is all.
        return step.rows / max(step.total, step.rows) if step.total else None

    async def _write_along(self, transaction: BatchTransaction) -> None:
        """Write what else belongs into the batch's transaction."""
        if self.run.spec.only is not None and self._page.cursor:
            await self.run.quarantine.delete_retried_row(await transaction.driver(), self._page.cursor)

    async def set_row_aside(self, page: Page) -> bool:
        """Put the one row that cannot be done into quarantine, with the checkpoint past it, where that is its turn."""
        entry = self._entry
        if entry is None or entry.set_aside is None or len(page.rows) != 1:
            return False
        error, entry.set_aside = entry.set_aside, None
        assert self._transaction is not None  # noqa: S101
        raw = await self._transaction.driver()
        await self.run.quarantine.add_row(raw, self.step, page.row_cursors()[0], error, jsonable(page.rows[0]))
        self._page, self._rows = page, 0
        await self.commit()
        return True

    async def mark_done(self) -> None:
        """Write down that the step has ended, where no batch is left to say so with."""
        if not self.step.done:
            transaction = BatchTransaction(self.run)
            try:
                checkpoint = self.run.checkpoints.statement(self.step, cursor=None, rows=0, done=True, batches=0)
                await transaction.commit(checkpoint, begin=False)
            except BaseException as error:
                await transaction.roll_back()
                await self.run.checkpoints.check_fence(error)
                raise
            self.step.done = True

    async def leave(self) -> None:
        """The job has left the loop: by `break`, its last batch counts, and the step has ended.

        Raises:
            LonghaulError: an exception has left it, and the job has caught it: see `swallowed_error_message`.
        """
        if self.finished or self._step is None:
            return
        if not self.left_deliberately:
            await self.fail()
            raise LonghaulError(swallowed_error_message(self._host.broken))
        try:
            await self.settle_left()
            if self._transaction is not None:
                await self.commit(done=True)
            else:
                await self.mark_done()
        finally:
            await self.abandon()

    async def settle_left(self) -> None:  # noqa: B027 - most loops leave nothing
        """Look at what the job leaves behind, before it is committed."""

    async def abandon(self) -> None:
        """Roll the open batch back: the job raised, or leaves this worker."""
        transaction, self._transaction = self._transaction, None
        try:
            if transaction is not None:
                await transaction.roll_back()
        finally:
            self.end()

    async def fail(self) -> None:
        """Roll the open batch back, and leave its place for the error of the run."""
        self._host.where = self.where
        self._host.broken = f"{self.kind} at {self.where or 'its beginning'}"
        if self._step is not None and self._transaction is not None:
            left = 0 if self._entry is None else self._entry.left
            self._host.failure = FailedBatch(self.step.name, self._rows or self._asked, left, self.quarantine_limit)
        await self.abandon()

    def end(self) -> None:
        """Note that this loop walks no more."""
        self.finished = True
        self._host.leave_loop(self)

    async def refuse_deadly_batch(self, page: Page, rows: int) -> None:
        """Raise `PoisonBatch` for the first batch of a try that is one too many.

        Each try before has ended with its worker, without a commit: this batch is the one they died in.
        """
        run = self.run
        if run.attempt > self._host.max_attempts and not run.has_progressed:
            keys = [unwrap(page.first_key or page.last_key), unwrap(page.last_key)]
            raise PoisonBatch(
                f"batch {self.number} of step {self.step.name!r} ended its worker {run.attempt - 1} times: "
                f"{rows} rows, keys {keys[0]!r} to {keys[1]!r}",
                keys,
            )


def swallowed_error_message(broken: str | None) -> str:
    """Return the error of a job that caught the exception of a loop, and went on."""
    return (
        f"an exception has left the loop {broken}, and the job went on: that batch was rolled back, and the rows after "
        f"it were not walked. Catch it inside of the loop's body (and `break` to end the walk there), or let it pass"
    )


class OwnTransaction:
    """A transaction on the run's own connection, of the loop itself; ended under cancellation too."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def __aenter__(self) -> AsyncConnection:
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            await run_to_completion(self._connection.commit())
        else:
            await run_to_completion(roll_back(self._connection.rollback()))
