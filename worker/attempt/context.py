"""`JobContext`: what a job is handed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload
from weakref import WeakSet

from sqlalchemy import Delete, Insert, Select, Update
from sqlalchemy.ext.asyncio import AsyncSession

from worker.attempt.attempt import Attempt
from worker.attempt.control import AttemptControl, JobRules, NoControl
from worker.batch import Batch, Bulk, Chunks, Progress, Stream, Sweep
from worker.batch.batch_retry import OnError
from worker.batch.lines import Lines
from worker.batch.options import ChunkOptions, Count, StreamOptions
from worker.batch.sizing import Size
from worker.batch.skip_locked import SkippingChunks
from worker.db.engine import Database
from worker.db.sessions import ScopedSession, savepoint_scope, session_scope, transaction_scope
from worker.errors import UnsupportedStatement
from worker.ledger import Ledger, RunSpec
from worker.settings import Settings

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")


class JobContext(Attempt):
    """Session scopes, durable loops and bulk operations of one try of one job.

    Attributes:
        run_id: id of the run, the job's id in Redis.
        job: name of the job.
        attempt: 1 for the first try.
        enqueued_at: aware time.
        headers: texts by name that came with the run, of its middleware and the variables that are carried.
        settings: the worker's.
        database: the worker's engine and scopes, for what the context does not offer.
        redis: the worker's connection to Redis; None without a worker.
    """

    def __init__(
        self,
        *,
        run_id: str,
        job: str,
        spec: Callable[[], RunSpec],
        attempt: int,
        enqueued_at: datetime,
        settings: Settings,
        database: Database,
        ledger: Ledger,
        rules: JobRules,
        control: AttemptControl | None = None,
        redis: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            run_id=run_id,
            job=job,
            spec=spec,
            attempt=attempt,
            settings=settings,
            database=database,
            ledger=ledger,
            rules=rules,
            control=control or NoControl(),
        )
        self.enqueued_at = enqueued_at
        self.redis = redis
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self._sessions: WeakSet[ScopedSession] | None = None

    def progress(self, done: int, total: int | None = None) -> None:
        """Say how far a job without a durable loop is; it shows where the rows of a walk do, and counts as progress.

        Args:
            done: so many of what the job counts.
            total: of so many; None where that is not known.
        """
        if self.home is not None and asyncio._get_running_loop() is None:  # from a thread
            self.home.call_soon_threadsafe(self.progress, done, total)
            return
        share = None if not total else min(1.0, done / total)
        self._said_done = done
        self._control.report(self, Progress("", "job", done, total, share, 0, 0, 0.0, None))

    # --- scopes

    def session(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session: `async with ctx.session() as session`. Commit in it as often as you like; what is
        open at the end is committed, or rolled back when the block raises."""
        return session_scope(self._new_session)

    def transaction(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session in one transaction, committed once, at the end; rolled back when the block raises."""
        return transaction_scope(self._new_session)

    def savepoint(self, session: AsyncSession) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a savepoint in a session's transaction; catch the error outside of it, and go on."""
        return savepoint_scope(session)

    def _new_session(self) -> ScopedSession:
        self.refuse_given_up()
        if self._sessions is None:
            self._sessions = WeakSet()
        session = self.database.sessions()
        self._sessions.add(session)
        return session

    async def give_up(self) -> list[str]:
        """Refuse whatever the job does from now on; what it has open in sessions cannot be committed."""
        for session in self._sessions or ():
            session.refuse_commit()
        return await super().give_up()

    # --- loops

    @overload
    def chunks(self, statement: Select[T], **options: Unpack[ChunkOptions]) -> Chunks[T]: ...
    @overload
    def chunks(self, statement: Select[T1, T2], **options: Unpack[ChunkOptions]) -> Chunks[tuple[T1, T2]]: ...
    @overload
    def chunks(self, statement: Select[T1, T2, T3], **options: Unpack[ChunkOptions]) -> Chunks[tuple[T1, T2, T3]]: ...
    @overload
    def chunks(
        self, statement: Select[T1, T2, T3, T4], **options: Unpack[ChunkOptions]
    ) -> Chunks[tuple[T1, T2, T3, T4]]: ...
    @overload
    def chunks(self, statement: Select[*tuple[Any, ...]], **options: Unpack[ChunkOptions]) -> Chunks[Any]: ...
    def chunks(
        self,
        statement: Any,
        *,
        size: Size | None = None,
        lock: bool = True,
        skip_locked: bool = False,
        by: Any = None,
        name: str | None = None,
        count: Count = "estimate",
        on_error: OnError = "raise",
        quarantine_limit: float = 0,
    ) -> Chunks[Any]:
        """LeavableWalk a table in batches: `async for batch in ctx.chunks(select(User), size=1_000)`.

        A batch is committed, with its cursor, when the loop asks for the next one; it is rolled back when the
        body raises. Rows that match when the walk begins are done exactly once.

        Args:
            statement: a `select()` of an entity or of columns, with where, joins, loader options.
            size: rows a batch, or "auto" for as many as take `batch.target_seconds`; `batch.size` of the settings
                by default.
            lock: lock the rows (FOR NO KEY UPDATE) until the batch is committed, so that no change that
                somebody else makes meanwhile is lost. False reads them in a transaction that is over before
                the body runs; the writing one begins at its first statement.
            skip_locked: go past rows that somebody else has locked, and come back for them before the end; only
                then are they waited for. The walk's order is by key but for those.
            by: column, or list of columns, of a unique and not-null key to walk by, each possibly `.desc()`;
                the primary key by default.
            name: name of the step in the ledger; give one where the order of the loops can change.
            count: how the total is found out, of which `percent` is a part: "estimate" asks the planner's statistics,
                and goes by the key's position where it can; "exact" counts the rows first.
            on_error: "quarantine": a batch that raises is halved until the rows that fail stand alone; they go to
                `worker.quarantine`, and the walk goes on. The job is entered again for that.
            quarantine_limit: rows that may be set aside: a number, or a share of all (below 1); with more, the run
                fails.

        Raises:
            UnsupportedStatement: the statement cannot be walked, or the key is not unique, or can be null.
            CursorMismatch: the ledger has a cursor of another statement.
        """
        if skip_locked and not lock:
            raise UnsupportedStatement("chunks: skip_locked=True is for a walk that locks its rows; it has lock=False")
        kind: type[Chunks[Any]] = SkippingChunks if skip_locked else Chunks
        return kind(
            self,
            statement,
            size=size,
            lock=lock,
            by=by,
            name=name,
            count=count,
            on_error=on_error,
            quarantine_limit=quarantine_limit,
        )

    @overload
    def stream(self, statement: Select[T], **options: Unpack[StreamOptions]) -> Stream[T]: ...
    @overload
    def stream(self, statement: Select[T1, T2], **options: Unpack[StreamOptions]) -> Stream[tuple[T1, T2]]: ...
    @overload
    def stream(self, statement: Select[T1, T2, T3], **options: Unpack[StreamOptions]) -> Stream[tuple[T1, T2, T3]]: ...
    @overload
    def stream(
        self, statement: Select[T1, T2, T3, T4], **options: Unpack[StreamOptions]
    ) -> Stream[tuple[T1, T2, T3, T4]]: ...
    @overload
    def stream(self, statement: Select[*tuple[Any, ...]], **options: Unpack[StreamOptions]) -> Stream[Any]: ...
    def stream(
        self,
        statement: Any,
        *,
        size: Size | None = None,
        restart: Literal["from_start"] | None = None,
        replica: bool = False,
        name: str | None = None,
        count: Count = "estimate",
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
            replica: read at `database.replica_url`, where that is set, once the replica has all that was committed
                before the walk, or this try of it, began.
            name: name of the step in the ledger.
            count: see `chunks`.
            on_error: see `chunks`; for a result that can be gone on with.
            quarantine_limit: see `chunks`.

        Raises:
            UnsupportedStatement: the result cannot be gone on with, and `restart` does not admit that.
        """
        return Stream(
            self,
            statement,
            size=size,
            restart=restart,
            replica=replica,
            name=name,
            count=count,
            on_error=on_error,
            quarantine_limit=quarantine_limit,
        )

    async def sweep(
        self,
        statement: Update | Delete | Insert,
        *,
        size: Size | None = None,
        by: Any = None,
        name: str | None = None,
        count: Count = "estimate",
    ) -> int:
        """Run one UPDATE, DELETE or INSERT ... SELECT over a whole table, in ranges of its key, each committed with
        its cursor.

        Args:
            statement: `update(...)`, `delete(...)` or `insert(...).from_select(...)`, without RETURNING; the key is
                that of the table that is selected from.
            size: rows of the table a range, whether they match or not; or "auto".
            by: a unique, not-null key to walk by; the primary key by default.
            name: name of the step in the ledger.
            count: see `chunks`.

        Returns:
            Rows changed or inserted, in earlier tries of this run too.

        Raises:
            UnsupportedStatement: the statement cannot be walked.
        """
        return await Sweep(self, statement, size=size, by=by, name=name, count=count).run_to_end()

    def lines(
        self, path: str | Path, *, size: Size | None = None, encoding: str = "utf-8", name: str | None = None
    ) -> Lines:
        """Read a text file by batches of lines: `async for batch in ctx.lines("users.csv")`.

        What is written through `batch.session` and `batch.bulk` is committed with the place in the file; a restart goes
        on behind it, on any worker that sees the same file.

        Args:
            path: of the file.
            size: lines a batch, or "auto"; `batch.size` of the settings by default.
            encoding: of the text.
            name: name of the step in the ledger.

        Raises:
            UnsupportedStatement: the file cannot be read, or is not in that encoding.
            CursorMismatch: what was done of it is not there any more, or has changed: it was cut off or replaced.
        """
        return Lines(self, Path(path), size=size, encoding=encoding, name=name)

    @property
    def bulk(self) -> Bulk:
        """Bulk operations outside of a batch: each call is one transaction."""
        self.refuse_given_up()
        return Bulk(None, self.settings.batch, self.database)


__all__ = ["Batch", "JobContext"]
