"""`JobContext`: what a job is handed."""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeVar, overload

from sqlalchemy import Delete, Select, Update
from sqlalchemy.ext.asyncio import AsyncSession

from worker.batch import Batch, Bulk, Chunks, Loop, Progress, Stream, Sweep, went_on_after
from worker.batch.entry import Entry, Failure, OnError
from worker.batch.pace import Size
from worker.batch.throttle import Hold, Seen, Throttle, Throttles, throttles_of
from worker.db.engine import Database
from worker.db.failure import is_away, one_line, will_pass
from worker.db.scopes import ScopedSession, savepoint_scope
from worker.errors import Cancelled, Drained, LonghaulError, Misuse
from worker.ledger import Ledger, LedgerRun, RunSpec
from worker.settings import Settings

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")

logger = logging.getLogger("worker.jobs")

_POLL_SECONDS = 0.5
#: Entries for errors that should pass and do not, until that is a failed try.
_ENTRIES_WITHOUT_PROGRESS = 12


class Control(Protocol):
    """What the worker tells a job, and what it wants to hear: the only thing that a job knows of its queue."""

    @property
    def draining(self) -> bool:
        """Whether the worker is about to stop."""

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return what an operator wants of the run."""

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator wants, or None."""

    def throttled(self, ctx: JobContext, held: Hold | None, since: datetime) -> None:
        """Take note that the walk waits, and why; None when it goes on."""

    def report(self, ctx: JobContext, progress: Progress) -> None:
        """Take note of a committed batch."""


class Alone:
    """The control of a job that runs without a worker, e.g. in a test."""

    draining = False

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """No operator, no orders."""
        return None

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """No operator, no pace."""
        return None

    def throttled(self, ctx: JobContext, held: Hold | None, since: datetime) -> None:
        """Nobody listens."""

    def report(self, ctx: JobContext, progress: Progress) -> None:
        """Nobody listens."""


@dataclass(frozen=True)
class JobRules:
    """The rules of the job that the loops need."""

    max_tries: int
    throttles: tuple[Throttle, ...] = ()


class JobContext:
    """Session scopes, durable loops and bulk operations of one try of one job.

    Attributes:
        run_id: id of the run, the job's id in Redis.
        job: name of the job.
        attempt: 1 for the first try.
        enqueued_at: aware time.
        settings: the worker's.
        database: the worker's engine and scopes, for what the context does not offer.
        redis: the worker's connection to Redis; None without a worker.
    """

    def __init__(
        self,
        *,
        spec: RunSpec,
        attempt: int,
        enqueued_at: datetime,
        settings: Settings,
        database: Database,
        ledger: Ledger,
        rules: JobRules,
        control: Control | None = None,
        redis: Any = None,
    ) -> None:
        self.run_id = spec.id
        self.job = spec.job
        self.attempt = attempt
        self.enqueued_at = enqueued_at
        self.settings = settings
        self.database = database
        self.redis = redis
        self._spec = spec
        self._ledger = ledger
        self._rules = rules
        self._control: Control = control or Alone()
        self._run: LedgerRun | None = None
        self._opening = asyncio.Lock()
        self._loop: Loop | None = None
        self._names: set[str] = set()
        self._count = 0
        #: The batch that was open when the job raised, in words.
        self.where: str | None = None
        self.broken: str | None = None
        self.failure: Failure | None = None
        self._entry: Entry | None = None
        self._entries = self._batches_then = 0
        self._walks: set[str] = set()
        self._throttles = Throttles(
            # A throttle has a state of its own in each run.
            [*throttles_of(settings.throttle), *(copy.copy(throttle) for throttle in rules.throttles)],
            check_seconds=settings.throttle.check_seconds,
        )
        self.on_durable: Callable[[], None] = lambda: None

    # --- scopes

    def session(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session: `async with ctx.session() as session`. Commit in it as often as you like; what is
        open at the end is committed, or rolled back when the block raises."""
        return self.database.session()

    def transaction(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session in one transaction, committed once, at the end; rolled back when the block raises."""
        return self.database.transaction()

    def savepoint(self, session: AsyncSession) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a savepoint in a session's transaction; catch the error outside of it, and go on."""
        return savepoint_scope(session)

    # --- loops

    @overload
    def chunks(
        self,
        statement: Select[T],
        *,
        size: Size | None = None,
        lock: bool = True,
        by: Any = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[T]: ...
    @overload
    def chunks(
        self,
        statement: Select[T1, T2],
        *,
        size: Size | None = None,
        lock: bool = True,
        by: Any = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[tuple[T1, T2]]: ...
    @overload
    def chunks(
        self,
        statement: Select[T1, T2, T3],
        *,
        size: Size | None = None,
        lock: bool = True,
        by: Any = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[tuple[T1, T2, T3]]: ...
    @overload
    def chunks(
        self,
        statement: Select[T1, T2, T3, T4],
        *,
        size: Size | None = None,
        lock: bool = True,
        by: Any = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[tuple[T1, T2, T3, T4]]: ...
    @overload
    def chunks(
        self,
        statement: Select[*tuple[Any, ...]],
        *,
        size: Size | None = None,
        lock: bool = True,
        by: Any = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[Any]: ...
    def chunks(
        self,
        statement: Any,
        *,
        size: Size | None = None,
        lock: bool = True,
        by: Any = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[Any]:
        """Walk a table in batches: `async for batch in ctx.chunks(select(User), size=1_000)`.

        A batch is committed, with its cursor, when the loop asks for the next one; it is rolled back when the
        body raises. Rows that match when the walk begins are done exactly once.

        Args:
            statement: a `select()` of an entity or of columns, with where, joins, loader options.
            size: rows a batch, or "auto" for as many as take `batch.target_seconds`; `batch.size` of the settings
                by default.
            lock: lock the rows (FOR NO KEY UPDATE) until the batch is committed, so that no change that
                somebody else makes meanwhile is lost. False reads them in a transaction that is over before
                the body runs; the writing one begins at its first statement.
            by: column, or list of columns, of a unique and not-null key to walk by, each possibly `.desc()`;
                the primary key by default.
            name: name of the step in the ledger; give one where the order of the loops can change.
            on_error: "quarantine": a batch that raises is halved until the rows that fail stand alone; they go to
                `worker.quarantine`, and the walk goes on. The job is entered again for that.
            quarantine_limit: rows that may be set aside: a number, or a share of all (below 1); with more, the run
                fails.

        Raises:
            StatementRefused: the statement cannot be walked, or the key is not unique, or can be null.
            CursorMismatch: the ledger has a cursor of another statement.
        """
        return Chunks(
            self,
            statement,
            size=size,
            lock=lock,
            by=by,
            name=name,
            on_error=on_error,
            quarantine_limit=quarantine_limit,
        )

    @overload
    def stream(
        self,
        statement: Select[T],
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Stream[T]: ...
    @overload
    def stream(
        self,
        statement: Select[T1, T2],
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Stream[tuple[T1, T2]]: ...
    @overload
    def stream(
        self,
        statement: Select[T1, T2, T3],
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Stream[tuple[T1, T2, T3]]: ...
    @overload
    def stream(
        self,
        statement: Select[T1, T2, T3, T4],
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Stream[tuple[T1, T2, T3, T4]]: ...
    @overload
    def stream(
        self,
        statement: Select[*tuple[Any, ...]],
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Stream[Any]: ...
    def stream(
        self,
        statement: Any,
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Stream[Any]:
        """Read one result through a server-side cursor, in one snapshot, with a commit for each partition.

        Ordered by a unique, not-null key, or grouped by the columns that it is ordered by, it goes on after a
        restart behind the last committed partition, in a new snapshot.

        Args:
            statement: any `select()`.
            size: rows a partition, or "auto"; `batch.size` of the settings by default.
            restart: "from_start" admits a result that cannot be gone on with: a restart does it all again.
            name: name of the step in the ledger.
            on_error: see `chunks`; for a result that can be gone on with.
            quarantine_limit: see `chunks`.

        Raises:
            StatementRefused: the result cannot be gone on with, and `restart` does not admit that.
        """
        return Stream(
            self,
            statement,
            size=size,
            restart=restart,
            name=name,
            on_error=on_error,
            quarantine_limit=quarantine_limit,
        )

    async def sweep(
        self, statement: Update | Delete, *, size: Size | None = None, by: Any = None, name: str | None = None
    ) -> int:
        """Run one UPDATE or DELETE over a whole table, in ranges of its key, each committed with its cursor.

        Args:
            statement: `update(...)` or `delete(...)`, without RETURNING.
            size: rows of the table a range, whether they match or not; or "auto".
            by: a unique, not-null key to walk by; the primary key by default.
            name: name of the step in the ledger.

        Returns:
            Rows changed, in earlier tries of this run too.

        Raises:
            StatementRefused: the statement cannot be walked.
        """
        return await Sweep(self, statement, size=size, by=by, name=name).run_to_end()

    @property
    def bulk(self) -> Bulk:
        """Bulk operations outside of a batch: each call is one transaction."""
        return Bulk(None, self.settings.batch, self.database)

    @property
    def rows_done(self) -> int:
        """Rows of all committed batches of this run, in earlier tries too."""
        return self._run.rows if self._run else 0

    @property
    def walking(self) -> bool:
        """Whether the job stands in a durable loop, which obeys orders at its next boundary."""
        return self._loop is not None

    @property
    def ledger_run(self) -> LedgerRun | None:
        """The run in the ledger; None as long as no durable loop has begun."""
        return self._run

    # --- what the loops ask of their host

    @property
    def max_tries(self) -> int:
        """Tries without progress after which the run is dead."""
        return self._rules.max_tries

    async def durable_run(self) -> LedgerRun:
        """Begin the run in the ledger, at the first call."""
        async with self._opening:
            if self._run is None:
                self._run = await self._ledger.begin(self._spec)
                self.attempt = self._run.attempt
                self.on_durable()
        return self._run

    async def enter_loop(self, loop: Loop) -> None:
        """Settle the loop before this one, which the job has left by `break`."""
        before = self._loop
        if before is not None and before is not loop:
            if before.in_progress:
                raise Misuse(
                    f"job {self.job}: a durable loop inside the body of another, or beside it: their batches cannot be "
                    f"in two transactions and one. Walk the join, or read the inner rows with batch.session. Where the "
                    f"other loop was left by `break`, and a generator of yours still holds it, close that first"
                )
            await before.leave()
        if self.broken is not None:
            raise LonghaulError(went_on_after(self.broken))
        self._loop = loop

    def leave_loop(self, loop: Loop) -> None:
        """Forget a loop that has ended."""
        if self._loop is loop:
            self._loop = None

    def step_name(self, kind: str, name: str | None) -> str:
        """Return a name for the step that is unique in the job."""
        self._count += 1
        chosen = name or f"{self._count}-{kind}"
        if chosen in self._names:
            raise Misuse(f"job {self.job}: two loops are named {chosen!r}; a step's name is its own")
        self._names.add(chosen)
        return chosen

    def refuse_twin(self, walk: str) -> None:
        """Refuse a second loop without a name over the same statement: after a restart, which is which?"""
        if walk in self._walks:
            raise Misuse(
                f"job {self.job}: two loops walk the same statement: give each a name=... that is made of what they "
                f"differ in, so that after a restart each finds its own cursor: {walk}"
            )
        self._walks.add(walk)

    async def boundary(self, *, resumable: bool, table: str) -> None:
        """Obey orders: leave for a drain or a pause, end by a cancel. Wait for what throttles the walk, and for the end
        of a pause where it cannot be gone on with elsewhere."""
        since: datetime | None = None
        while True:
            order = await self._control.order(self.run_id, self.job)
            if order == "cancel":
                raise Cancelled("cancelled by order")
            if self._control.draining:
                raise Drained("waiting")
            if order == "pause" and resumable:
                raise Drained("paused")
            held = Hold("paused") if order == "pause" else await self._held(table)
            if held is None:
                if since is not None:
                    self._control.throttled(self, None, since)
                return
            now = datetime.now(UTC)
            since = since or now
            self._control.throttled(self, held, since)
            left = (held.until - now).total_seconds() if held.until else _POLL_SECONDS
            await asyncio.sleep(min(max(left, 0.0), _POLL_SECONDS))

    async def _held(self, table: str) -> Hold | None:
        run = await self.durable_run()
        self._throttles.order(self._control.rows_per_second(self.run_id, self.job))
        return await self._throttles.hold(Seen(run.driver.raw, table, run.rows - run.rows_before, datetime.now(UTC)))

    def report(self, progress: Progress) -> None:
        """Tell the worker of a committed batch."""
        self._control.report(self, progress)

    # --- another entry, after a batch has failed

    def take_entry(self, step: str) -> Entry | None:
        """Return how a loop is entered again, once; None where it is not."""
        entry = self._entry
        if entry is None or entry.step != step:
            return None
        self._entry = None
        return entry

    async def enter_again(self, error: BaseException) -> bool:
        """Make the context ready for another call of the job's function, where that can cure the error.

        What will pass (a deadlock, a timeout of lock or statement) is tried again with half of the rows, down to one;
        what a row is to blame for, where its loop has a quarantine, until that row stands alone and is set aside.

        Returns:
            False where the error is the run's.
        """
        failure, run = self.failure, self._run
        if failure is None or run is None or not isinstance(error, Exception) or is_away(error):
            return False
        if run.batches != self._batches_then:
            self._entries, self._batches_then = 0, run.batches
        self._entries += 1
        if will_pass(error):
            if self._entries > _ENTRIES_WITHOUT_PROGRESS:
                return False
            entry = failure.halved()
            await asyncio.sleep(random.uniform(0.01, 0.05) * self._entries)  # noqa: S311 - no secret
        elif not failure.quarantine_limit or not self._resumable(failure):
            return False
        elif failure.rows > 1:
            entry = failure.halved()
        elif await self._ledger.may_quarantine(run, failure.step, failure.quarantine_limit):
            entry = failure.without_the_row(error)
        else:
            return False
        logger.warning(
            "%s %s: step %r failed (%s): entered again with %s",
            self.job,
            self.run_id,
            failure.step,
            one_line(error),
            "the row set aside" if entry.set_aside else f"{entry.limit} rows",
        )
        self._entry = entry
        self._loop, self.where, self.broken, self.failure = None, None, None, None
        self._names, self._walks, self._count = set(), set(), 0
        return True

    def _resumable(self, failure: Failure) -> bool:
        run = self._run
        return run is not None and bool(run.steps[failure.step].key)

    # --- the end, called by whoever runs the job

    async def succeed(self) -> None:
        """Commit what the job has left open: it has returned."""
        if self._loop is not None:
            await self._loop.leave()
        if self.broken is not None:
            raise LonghaulError(went_on_after(self.broken))

    async def fail(self) -> None:
        """Roll back what is open: the job has raised."""
        if self._loop is not None:
            await self._loop.fail()

    async def close(self) -> None:
        """Give the run's connection back."""
        if self._run is not None:
            await self._run.release()


__all__ = ["Alone", "Batch", "Control", "JobContext", "JobRules"]
