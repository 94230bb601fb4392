"""`JobContext`: the context that a job gets as its first argument."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from sqlalchemy import Delete, Insert, Select, Update
from sqlalchemy.ext.asyncio import AsyncSession

from worker.attempt.attempt import Attempt
from worker.attempt.run_logger import RunLogger
from worker.attempt.steps import Steps
from worker.batch import Bulk, Source, Walk
from worker.batch.bulk.tracked import TrackedBulk
from worker.batch.loops import make_chunks, make_stream, make_sweep, make_walk
from worker.batch.options import ChunkOptions, SourceOptions, StreamOptions, SweepOptions
from worker.db.sessions import ScopedSession, savepoint_scope, session_scope, transaction_scope
from worker.sources import TextLines

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
        enqueued_ms: time at which the run was enqueued, in ms since 1970; 0 for now.
        headers: header texts of the run, by name.
        redis: the worker's connection to Redis.

    Attributes:
        headers: header texts of the run, by name, from middleware and propagated context variables.
        redis: the worker's connection to Redis; None without a worker.
    """

    #: Whether a command only looks at the job, such as `worker plan`: sinks write no files.
    _is_looking = False

    def __init__(
        self,
        attempt: Attempt,
        *,
        enqueued_ms: int = 0,
        headers: Mapping[str, str] | None = None,
        redis: Any = None,
    ) -> None:
        self._attempt = attempt
        self._enqueued_ms = enqueued_ms
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self.redis = redis

    @cached_property
    def enqueued_at(self) -> datetime:
        """Aware time at which the run was enqueued."""
        return datetime.fromtimestamp(self._enqueued_ms / 1000 or time.time(), UTC)

    @property
    def run_id(self) -> str:
        """Id of the run; it is also the id of arq's job. In a helper, the id of the run that it helps."""
        hand = self._attempt.hand
        return self._attempt.run_id if hand is None else hand.run_id

    @property
    def is_helper(self) -> bool:
        """Whether this is a helper run, which takes part in a walk of another run, and ends with that walk."""
        return self._attempt.hand is not None

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
        """The worker's engine and scopes, for operations that the context does not offer."""
        return self._attempt.database

    @property
    def rows_done(self) -> int:
        """Rows of all committed batches of this run, including earlier attempts and other hands; or the count reported
        by `progress`."""
        return self._attempt.rows_done

    def progress(self, done: int, total: int | None = None) -> None:
        """Report the progress of a job without a durable loop. It is shown like the rows of a walk.

        Args:
            done: number of items that are done.
            total: number of all items; None if it is not known.
        """
        self._attempt.report_progress(done, total)

    @cached_property
    def log(self) -> RunLogger:
        """The log of the run, the logger `job.<name of the job>`: `ctx.log.info("sent mails=%d", count)`.

        Its lines have the fields of the run in any thread. Those from INFO on are kept as the last lines of the run:
        `worker runs show <id> --log`.
        """
        return RunLogger(self._attempt.fields)

    async def _call(self, job: Job[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await self._attempt.call(job, self, args, kwargs)

    async def _has_selection(self) -> bool:
        """Return whether an operator has selected a part of the walks: `--subset` and `--from`."""
        return (await self._attempt.durable_run()).spec.is_selected

    # --- steps

    @overload
    def step(
        self, name: str, function: Callable[..., Awaitable[T]], /, *args: Any, transaction: bool = False, **kwargs: Any
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, name: str, function: Callable[..., T], /, *args: Any, transaction: bool = False, **kwargs: Any
    ) -> Coroutine[Any, Any, T]: ...
    def step(
        self, name: str, function: Callable[..., Any], /, *args: Any, transaction: bool = False, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Run a function once: `token = await ctx.step("create export", create_export, day)`.

        Its result is recorded in the ledger. A later attempt of the run returns it, and does not call the function. If
        an attempt dies between the function's effect and the record, the function runs again: at least once. With
        `transaction=True`, its writes commit with the record: exactly once. The job's timeout holds for each step.

        Args:
            name: name of the step, of 1 to 200 characters, unique in the run.
            function: an `async def`, or a plain function, which runs in a thread.
            *args: its arguments.
            transaction: whether the function, an `async def`, gets a session as its first argument.
            **kwargs: its keyword arguments.

        Returns:
            The result, as JSON gives it back in the type that the function declares.

        Raises:
            UsageError: The name is used twice, the result is no JSON or too large, or a loop or step is in progress.
            CursorMismatch: The order of the finished steps differs from that in the ledger.
        """
        steps = Steps(self._attempt)
        return self._attempt.calls.track(
            "ctx.step", steps.run(name, function, args, kwargs, in_transaction=transaction)
        )

    def sleep(self, seconds: float, *, name: str | None = None) -> Coroutine[Any, Any, None]:
        """Give the slot back for some seconds, and go on behind. It costs no attempt.

        The end is recorded in the ledger, so that a restart waits for the rest alone. The job is called again, and its
        finished loops and steps are skipped. An exception ends this attempt: let `BaseException` pass.

        Args:
            seconds: seconds to wait, up to ten years.
            name: name of the step; by default made from the order of the sleeps.

        Raises:
            UsageError: The number is negative or too large, or a loop or step is in progress.
        """
        return self._attempt.calls.track("ctx.sleep", Steps(self._attempt).sleep(name, seconds=seconds))

    def sleep_until(self, moment: datetime, *, name: str | None = None) -> Coroutine[Any, Any, None]:
        """Give the slot back until a moment, and go on behind; see `sleep`.

        Args:
            moment: a datetime with a time zone, by PostgreSQL's clock. If it has passed, the job continues at once.
            name: name of the step; by default made from the order of the sleeps.
        """
        return self._attempt.calls.track("ctx.sleep_until", Steps(self._attempt).sleep_until(name, moment))

    # --- scopes

    def session(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session: `async with ctx.session() as session`. Commit in it as often as you like.

        At the end of the block, the open transaction is committed; it is rolled back if the block raises.
        """
        return self._settled(session_scope(self._attempt.open_session))

    def transaction(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session in one transaction, committed once at the end of the block; rolled back if it raises."""
        return self._settled(transaction_scope(self._attempt.open_session))

    @asynccontextmanager
    async def _settled(self, scope: AbstractAsyncContextManager[ScopedSession]) -> AsyncIterator[ScopedSession]:
        await self._attempt.settle_loop()
        async with scope as session:
            yield session

    def savepoint(self, session: AsyncSession) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a savepoint in a session's transaction. To continue after an error, catch it outside of the block."""
        return savepoint_scope(session)

    # --- loops

    @overload
    def chunks(self, statement: Select[T], **options: Unpack[ChunkOptions]) -> Walk[T]: ...
    @overload
    def chunks(self, statement: Select[T1, T2], **options: Unpack[ChunkOptions]) -> Walk[tuple[T1, T2]]: ...
    @overload
    def chunks(self, statement: Select[T1, T2, T3], **options: Unpack[ChunkOptions]) -> Walk[tuple[T1, T2, T3]]: ...
    @overload
    def chunks(
        self, statement: Select[T1, T2, T3, T4], **options: Unpack[ChunkOptions]
    ) -> Walk[tuple[T1, T2, T3, T4]]: ...
    @overload
    def chunks(self, statement: Select[*tuple[Any, ...]], **options: Unpack[ChunkOptions]) -> Walk[Any]: ...
    def chunks(self, statement: Any, **options: Unpack[ChunkOptions]) -> Walk[Any]:
        """Walk a table in batches: `async for batch in ctx.chunks(select(User), size=1_000)`.

        A batch is committed, with its cursor, when the loop asks for the next one; it is rolled back when the body
        raises. Rows that match when the walk begins are done exactly once.

        Args:
            statement: A `select()` of an entity or of columns, with where, joins, and loader options.
            **options: See `worker.batch.options.ChunkOptions`: `size`, `lock`, `skip_locked`, `by`, `unique`,
                `allow_sort`, `name`, `count`, `on_error`, `quarantine_limit`.

        Returns:
            A walk, for one `async for`. `async with ctx.chunks(...) as batches` commits its last batch at the end of
            the block.

        Raises:
            UnsupportedStatement: The statement cannot be walked, or the key is not unique, or can be null.
            CursorMismatch: The ledger has a cursor of another statement.
        """
        return make_chunks(self._attempt, statement, **options)

    @overload
    def stream(self, statement: Select[T], **options: Unpack[StreamOptions]) -> Walk[T]: ...
    @overload
    def stream(self, statement: Select[T1, T2], **options: Unpack[StreamOptions]) -> Walk[tuple[T1, T2]]: ...
    @overload
    def stream(self, statement: Select[T1, T2, T3], **options: Unpack[StreamOptions]) -> Walk[tuple[T1, T2, T3]]: ...
    @overload
    def stream(
        self, statement: Select[T1, T2, T3, T4], **options: Unpack[StreamOptions]
    ) -> Walk[tuple[T1, T2, T3, T4]]: ...
    @overload
    def stream(self, statement: Select[*tuple[Any, ...]], **options: Unpack[StreamOptions]) -> Walk[Any]: ...
    def stream(self, statement: Any, **options: Unpack[StreamOptions]) -> Walk[Any]:
        """Read one result through a server-side cursor, in one snapshot, with a commit for each partition.

        If it is ordered by a unique, not-null key, or grouped by the columns that it is ordered by, a restart continues
        behind the last committed partition, in a new snapshot.

        Args:
            statement: Any `select()`.
            **options: See `worker.batch.options.StreamOptions`: `size`, `on_restart`, `replica`, `name`, `count`,
                `on_error`, `quarantine_limit`.

        Returns:
            A walk; see `chunks`.

        Raises:
            UnsupportedStatement: The result has no key to continue behind, and `on_restart` does not allow that.
        """
        return make_stream(self._attempt, statement, **options)

    def sweep(self, statement: Update | Delete | Insert, **options: Unpack[SweepOptions]) -> Coroutine[Any, Any, int]:
        """Run one UPDATE, DELETE or INSERT ... SELECT over a whole table, in ranges of its key, each committed with
        its cursor.

        Args:
            statement: `update(...)`, `delete(...)` or `insert(...).from_select(...)`, without RETURNING; the key
                belongs to the table that is selected from.
            **options: See `worker.batch.options.SweepOptions`: `size` (rows of the table in a range, whether they
                match or not), `by`, `allow_sort`, `name`, `count`.

        Returns:
            The number of rows changed or inserted by all attempts of this run.

        Raises:
            UnsupportedStatement: The statement cannot be walked.
        """
        return self._attempt.calls.track("ctx.sweep", self._sweep(statement, options))

    async def _sweep(self, statement: Update | Delete | Insert, options: SweepOptions) -> int:
        return await make_sweep(self._attempt, statement, **options).run()

    def lines(self, path: str | Path, *, encoding: str = "utf-8", **options: Unpack[SourceOptions]) -> Walk[str]:
        """Read a text file by batches of lines: `async for batch in ctx.lines("users.csv")`.

        This is `ctx.walk(TextLines(path, encoding=encoding))`; see `worker.sources.TextLines`.

        Args:
            path: The file: a path or a URL, also of a compressed file.
            encoding: The encoding of its text.
            **options: See `walk`.

        Returns:
            A walk; see `chunks`.
        """
        return self.walk(TextLines(path, encoding=encoding), **options)

    def walk(self, source: Source[T], **options: Unpack[SourceOptions]) -> Walk[T]:
        """Walk a source, such as a file: `async for batch in ctx.walk(CsvFile(path, UserRow), size=1_000)`.

        Args:
            source: A source of `worker.sources`, or an object of yours with the methods of `worker.Source`.
            **options: See `worker.batch.options.SourceOptions`: `size`, `name`, `on_error`, `quarantine_limit`.

        Returns:
            A walk; see `chunks`.

        Raises:
            CursorMismatch: The ledger has a cursor of another source.
        """
        return make_walk(self._attempt, source, **options)

    @property
    def bulk(self) -> Bulk:
        """Bulk operations outside of a batch: each call is one transaction."""
        self._attempt.ensure_not_abandoned()
        attempt = self._attempt
        return TrackedBulk(attempt.calls, "ctx.bulk", attempt.settle_loop, None, self.settings.batch, self.database)
