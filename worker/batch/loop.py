"""What the three kinds of loop have in common: a step in the ledger, a batch that is open, a boundary."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.batch import unwrap
from worker.batch.bulk import Bulk
from worker.batch.keyset import Keyset
from worker.db.engine import Database
from worker.db.scopes import ScopedSession, roll_back, settle
from worker.errors import BatchKilledWorker, LonghaulError, StatementRefused
from worker.ledger import LedgerRun, StepRecord, StepSpec
from worker.settings import Settings


@dataclass(frozen=True)
class Progress:
    """How far a loop is, after a batch."""

    step: str
    kind: str
    rows: int
    total: int | None
    batches: int
    batch_size: int
    batch_seconds: float
    last_key: Any


class Host(Protocol):
    """What a loop needs from the job that it runs in."""

    settings: Settings
    database: Database
    #: The batch that failed, in words; None while none has.
    where: str | None

    async def durable_run(self) -> LedgerRun:
        """Return the run in the ledger, begun at the first call."""

    async def enter_loop(self, loop: Loop) -> None:
        """Settle the loop before this one; refuse one loop inside another."""

    def leave_loop(self, loop: Loop) -> None:
        """Forget a loop that has ended."""

    def step_name(self, kind: str, name: str | None) -> str:
        """Return the step's name: the given one, or one made from the order of the loops."""

    async def boundary(self, *, resumable: bool) -> None:
        """Obey orders between two batches: raise `Drained` or `Cancelled`, or wait."""

    def report(self, progress: Progress) -> None:
        """Take note of a committed batch."""

    @property
    def max_tries(self) -> int:
        """Tries without progress after which the run is dead."""


class Loop:
    """One durable loop.

    Args:
        host: the job that it runs in.
        name: name of the step; None for one made from kind and order.
        size: rows a batch; None for `batch.size` of the settings.
    """

    kind = "loop"
    #: Whether a run that leaves its worker here can go on where it was.
    resumable = True

    def __init__(self, host: Host, *, name: str | None, size: int | None) -> None:
        if size is not None and size < 1:
            raise StatementRefused(f"{self.kind}: size={size}: a batch has at least one row")
        self._host = host
        self._given_name = name
        self.size = size or host.settings.batch.size
        self._run: LedgerRun | None = None
        self._step: StepRecord | None = None
        self._session: ScopedSession | None = None
        self._pending: list[Any] | None = None  # key of the last row of the open batch, decoded
        self._pending_first: list[Any] | None = None
        self._pending_rows = 0
        self._began = 0.0
        self._iterator: weakref.ref[object] | None = None
        self.finished = False

    @property
    def step(self) -> StepRecord:
        """The step in the ledger."""
        assert self._step is not None  # noqa: S101
        return self._step

    @property
    def run(self) -> LedgerRun:
        """The run in the ledger."""
        assert self._run is not None  # noqa: S101
        return self._run

    @property
    def in_progress(self) -> bool:
        """Whether an `async for` stands inside of this loop: it holds the iterator, and drops it on leaving."""
        return not self.finished and self._iterator is not None and self._iterator() is not None

    @property
    def where(self) -> str | None:
        """The open batch, for the error of a job that fails in it; None when none is open."""
        if self._step is None or self._session is None:
            return None
        place = f"step {self.step.name!r}, batch {self.number}"
        if self._pending is None:
            return place
        if self._pending_first is None:
            return f"{place}, up to key {unwrap(self._pending)!r}"
        return f"{place}, keys {unwrap(self._pending_first)!r} to {unwrap(self._pending)!r}"

    def hold(self, iterator: object) -> None:
        """Remember the iterator by which the job walks, without keeping it alive."""
        if self._iterator is not None:
            raise LonghaulError(f"{self.kind}: one loop object is for one `async for`; call ctx.{self.kind} again")
        self._iterator = weakref.ref(iterator)

    async def begin(self) -> bool:
        """Find or make the step. Returns False when an earlier try has finished it."""
        await self._host.enter_loop(self)
        self._run = await self._host.durable_run()
        name = self._host.step_name(self.kind, self._given_name)
        async with Transaction(self._run.connection):
            self._step = await self._open(name)
        if self._step.done:
            self.end()
            return False
        return True

    async def _open(self, name: str) -> StepRecord:
        raise NotImplementedError

    def spec(self, name: str, statement: str, keyset: Keyset | None) -> StepSpec:
        """Return what the ledger compares a known step with."""
        return StepSpec(name, self.kind, statement, keyset.describe() if keyset else [])

    @property
    def number(self) -> int:
        """Number of the batch that comes next."""
        return self.step.batches + 1

    def idempotency_key(self) -> str:
        """Return the key of the batch that comes next, the same at each try of it."""
        return f"{self.run.spec.id}:{self.step.name}:{self.number}"

    def open_batch(self) -> tuple[ScopedSession, Bulk]:
        """Return the session of a new batch, and its bulk operations."""
        self._began = time.monotonic()
        self._host.where = None
        self._session = self.run.session("a batch")
        return self._session, Bulk(self._session, self._host.settings.batch, self._host.database)

    async def commit(self, *, done: bool = False) -> None:
        """Commit the open batch, its writes and its cursor together."""
        session = self._session
        if session is None:
            return
        try:
            await session.flush()
            connection = await session.connection()
            cursor = self.cursor_of_pending()
            await self.run.checkpoint(connection, self.step, cursor=cursor, rows=self._pending_rows, done=done)
        except BaseException:
            await self.fail()
            raise
        self._session = None
        await session.end(commit=True)
        step = self.step
        step.rows += self._pending_rows
        step.batches += 1
        step.cursor = cursor or step.cursor
        step.done = done
        self._host.report(
            Progress(
                step=step.name,
                kind=self.kind,
                rows=step.rows,
                total=step.total,
                batches=step.batches,
                batch_size=self._pending_rows,
                batch_seconds=time.monotonic() - self._began,
                last_key=unwrap(self._pending),
            )
        )

    def cursor_of_pending(self) -> list[Any] | None:
        """Return the cursor after the open batch, as JSON; None leaves it as it is."""
        raise NotImplementedError

    async def mark_done(self) -> None:
        """Write down that the step has ended, where no batch is left to say so with."""
        if not self.step.done:
            async with Transaction(self.run.connection) as connection:
                await self.run.checkpoint(connection, self.step, cursor=None, rows=0, done=True, batches=0)
            self.step.done = True

    async def leave(self) -> None:
        """The job has left the loop by `break`: its last batch counts, and the step has ended."""
        if self.finished or self._step is None:
            return
        try:
            if self._session is not None:
                await self.commit(done=True)
            else:
                await self.mark_done()
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Roll the open batch back: the job raised, or leaves this worker."""
        session, self._session = self._session, None
        try:
            if session is not None:
                await session.end(commit=False)
        finally:
            self.end()

    async def fail(self) -> None:
        """Roll the open batch back, and leave its place for the error of the run."""
        self._host.where = self.where
        await self.abandon()

    def end(self) -> None:
        """Note that this loop walks no more."""
        self.finished = True
        self._host.leave_loop(self)

    async def refuse_deadly_batch(self, first: list[Any], last: list[Any], rows: int) -> None:
        """Raise `BatchKilledWorker` for the first batch of a try that is one too many.

        Each try before has ended with its worker, without a commit: this batch is the one they died in.
        """
        run = self.run
        if run.attempt > self._host.max_tries and not run.progressed:
            keys = [unwrap(first), unwrap(last)]
            raise BatchKilledWorker(
                f"batch {self.number} of step {self.step.name!r} ended its worker {run.attempt - 1} times: "
                f"{rows} rows, keys {keys[0]!r} to {keys[1]!r}",
                keys,
            )


class Transaction:
    """A transaction on the run's own connection, ended under cancellation too."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def __aenter__(self) -> AsyncConnection:
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            await settle(self._connection.commit())
        else:
            await settle(roll_back(self._connection.rollback()))
