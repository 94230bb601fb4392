"""`JobContext`: the context that a job gets as its first argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from sqlalchemy import Delete, Insert, Select, Update
from sqlalchemy.ext.asyncio import AsyncSession

from worker.attempt.attempt import Attempt
from worker.batch import Bulk, Chunks, Stream, Sweep
from worker.batch.batch_retry import OnError
from worker.batch.lines import Lines
from worker.batch.options import ChunkOptions, Count, StreamOptions
from worker.batch.sizing import Size
from worker.batch.skip_locked import SkippingChunks
from worker.db.sessions import ScopedSession, savepoint_scope, session_scope, transaction_scope
from worker.errors import UnsupportedStatement

if TYPE_CHECKING:
    from worker.db.engine import Database
    from worker.job.definition import Job
    from worker.settings import Settings

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")


class JobContext:
    """The context of one attempt of a job: session scopes, durable loops, bulk operations, and progress.

    Its public names are all that a job may use; the attempt behind it belongs to the worker.

    Args:
        attempt: the attempt.
        enqueued_at: aware time.
        headers: texts by name that came with the run.
        redis: the worker's connection to Redis.

    Attributes:
        enqueued_at: aware time at which the run was enqueued.
        headers: texts by name that came with the run, from middleware and propagated context variables.
        redis: the worker's connection to Redis; None without a worker.
    """

    def __init__(
        self,
        attempt: Attempt,
        *,
        enqueued_at: datetime,
        headers: Mapping[str, str] | None = None,
        redis: Any = None,
    ) -> None:
        self._attempt = attempt
        self.enqueued_at = enqueued_at
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self.redis = redis

    @property
    def run_id(self) -> str:
        """Id of the run; it is also the id of arq's job."""
        return self._attempt.run_id

    @property
    def job(self) -> str:
        """Name of the job."""
        return self._attempt.job

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._attempt.number

    @property
    def settings(self) -> Settings:
        """The worker's settings."""
        return self._attempt.settings

    @property
    def database(self) -> Database:
        """The worker's engine and scopes, for what the context does not offer."""
        return self._attempt.database

    @property
    def rows_done(self) -> int:
        """Rows of all committed batches of this run, also of earlier attempts; or what `progress` has reported."""
        return self._attempt.rows_done

    def progress(self, done: int, total: int | None = None) -> None:
        """Report the progress of a job without a durable loop. It is shown as the rows of a walk are.

        Args:
            done: number of items that are done.
            total: number of all items; None if it is not known.
        """
        self._attempt.report_progress(done, total)

    async def _call(self, job: Job[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await self._attempt.call(job, self, args, kwargs)

    # --- scopes

    def session(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session: `async with ctx.session() as session`. Commit in it as often as you like.

        At the end of the block, the open transaction is committed; it is rolled back if the block raises.
        """
        return session_scope(self._attempt.open_session)

    def transaction(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session in one transaction, committed once at the end of the block; rolled back if it raises."""
        return transaction_scope(self._attempt.open_session)

    def savepoint(self, session: AsyncSession) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a savepoint in a session's transaction. Catch the error outside of the block to go on after it."""
        return savepoint_scope(session)

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
            self._attempt,
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
            self._attempt,
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
        return await Sweep(self._attempt, statement, size=size, by=by, name=name, count=count).run_to_end()

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
        return Lines(self._attempt, Path(path), size=size, encoding=encoding, name=name)

    @property
    def bulk(self) -> Bulk:
        """Bulk operations outside of a batch: each call is one transaction."""
        self._attempt.ensure_not_abandoned()
        return Bulk(None, self.settings.batch, self.database)
