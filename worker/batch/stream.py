"""`ctx.stream`: one server-side cursor, one snapshot, a writing transaction for each partition."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Alias, Select, Table, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncResult, AsyncSession
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import Over
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Join

from worker.batch.batch import Batch
from worker.batch.batch_retry import OnError
from worker.batch.catalog import column_types, look_key_up, refuse_missing_table, returns_sets, sql_text
from worker.batch.collector import suspended
from worker.batch.compiled import CompiledStatement
from worker.batch.keyset import Keyset, key_part, selects_from, underlying_column, walked_tables
from worker.batch.loop_exit import LoopIterator, OnlyAsyncFor, caller
from worker.batch.options import Count
from worker.batch.page import Page, Row, RowShape
from worker.batch.replica import has_replayed, written
from worker.batch.sizing import Size
from worker.batch.walk import OwnTransaction, Walk, WalkHost
from worker.cancellation import cancel_and_wait, run_to_completion
from worker.db.driver import Driver
from worker.db.sessions import ScopedSession, roll_back
from worker.db.statement_internals import SelectClauses, read_select_clauses
from worker.errors import UnsupportedStatement, UsageError
from worker.ledger import StepRecord

logger = logging.getLogger("longhaul.batch")

_REPLAY_POLL_SECONDS = 0.05
_BUFFER_ROWS = 1_000  # that SQLAlchemy fetches at a time where the rows are objects

T = TypeVar("T")


class Stream(OnlyAsyncFor, Walk, Generic[T]):
    """An `async for` over partitions of one result; see `JobContext.stream`."""

    kind = "stream"
    begins_ahead = False  # a partition comes from the reader: its transaction begins with what the job writes

    def __init__(
        self,
        host: WalkHost,
        statement: Select[Any],
        *,
        size: Size | None,
        restart: Literal["from_start"] | None,
        replica: bool,
        name: str | None,
        count: Count,
        on_error: OnError,
        quarantine_limit: float,
    ) -> None:
        super().__init__(host, name=name, size=size, count=count)
        self.quarantine_limit = quarantine_limit if on_error == "quarantine" else 0
        if not isinstance(statement, Select):
            raise UnsupportedStatement(f"stream takes a select(), not {type(statement).__name__}")
        self._statement = statement
        self._restart = restart
        self._replica = host.database.replica if replica else None
        self._keyset: Keyset | None = None
        self._source: SnapshotReader | None = None
        self._at_end = False
        self._told_of_age = False

    def __aiter__(self) -> AsyncIterator[Batch[T]]:
        iterator = LoopIterator[Batch[T]](self, caller())
        self.hold(iterator)
        return iterator

    async def _open(self, name: str) -> StepRecord:
        connection = self.run.connection
        self._keyset, problem = await resume_key(connection, self._statement)
        self.resumable = self._keyset is not None
        if self._keyset is None:
            if self._restart != "from_start":
                raise UnsupportedStatement(
                    f"stream: this result cannot be gone on with after a restart, because {problem}. Order it by "
                    f"a unique, not-null key, or say restart='from_start' if doing every row again is meant"
                )
            logger.warning(
                "stream %r of run %s: a restart begins it again from its first row, because %s",
                name,
                self.run.spec.id,
                problem,
            )
        spec = self.spec(name, sql_text(self._statement), self._keyset)
        step = self.run.checkpoints.find_step(spec)
        if self.run.spec.only is not None and self._keyset is not None:
            self._statement = self._statement.where(self._keyset.among(await self.run.quarantine.list_retried_keys()))
        if step is None:
            total = await self._total(connection, self._statement)
            return await self.run.checkpoints.open_step(spec, upper_bound=None, total=total)
        if self._keyset is None and not step.done and step.batches:
            await self.run.checkpoints.restart_step(step)
        return step

    async def next_batch(self) -> Batch[T] | None:
        """Commit the partition before, obey orders, fetch the next one; None at the end."""
        if self._step is None:
            if not await self.begin():
                return None
        else:
            await self.settle_left()
            await self.commit(done=self._at_end)
        if self.step.done:
            await self._close_source()
            self.end()
            return None
        await self._host.boundary(resumable=self.resumable, table=self.table)
        await self._renew_snapshot()
        if self._source is None:
            self._source = await self._open_source()
        page = await self._next_page(self._source)
        if not page.rows:
            await self._close_source()
            await self.mark_done()
            self.end()
            return None
        self._at_end = self._source.at_end
        self.open_batch()
        self._asked = len(page.rows)
        batch: Batch[T] = self.batch(page)
        await self.refuse_deadly_batch(page, len(page.rows))
        return batch

    async def _next_page(self, source: SnapshotReader) -> Page:
        """Return the next partition, past the rows that are set aside; an empty one at the end."""
        while True:
            # Under a limit nothing is read ahead: what follows depends on what becomes of these rows.
            page = await source.next_page(self.size, ahead=self._entry is None)
            if self._entry is None or self._entry.set_aside is None or not page.rows:
                return page
            self.open_batch()
            if not await self.set_row_aside(page):
                return page

    async def abandon(self) -> None:
        try:
            await self._close_source()
        finally:
            await super().abandon()

    async def _open_source(self) -> SnapshotReader:
        shape = RowShape(self._statement, self._keyset)
        statement, values = shape.statement, {}
        if self._keyset is not None and self.step.cursor is not None:
            statement = statement.where(self._keyset.after())
            values = self._behind()
        # A commit of the writer must not close the cursor, so the reader has a connection of its own.
        connection = await (self._replica or self._host.database).engine.connect()
        source = SnapshotReader(connection, shape)
        try:
            if self._replica is not None:
                await self._wait_for_replica(connection)
            await source.open(statement, values)
        except BaseException:
            await source.close()
            raise
        return source

    async def _renew_snapshot(self) -> None:
        """Give up a snapshot that is too old: VACUUM can remove nothing that has died since it was taken."""
        source, limit = self._source, self._host.settings.batch.max_snapshot_seconds
        if source is None or not limit or source.age <= limit or self._told_of_age:
            return
        about = (self.step.name, self.run.spec.id, source.age)
        if self._keyset is None:
            self._told_of_age = True
            logger.warning(
                "stream %r of run %s: its snapshot is %.0f s old, and holds VACUUM back; without a key it cannot be "
                "opened anew",
                *about,
            )
            return
        logger.info("stream %r of run %s: a new snapshot after %.0f s, behind key %s", *about, self.step.cursor)
        await self._close_source()

    async def _wait_for_replica(self, reader: AsyncConnection) -> None:
        """Let the replica come to where the primary is now: a snapshot before that would leave rows out."""
        async with OwnTransaction(self.run.connection) as connection:
            position = await written(connection)
        while not await has_replayed(reader, position):
            await self._host.boundary(resumable=self.resumable, table=self.table)
            await asyncio.sleep(_REPLAY_POLL_SECONDS)

    async def _close_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await source.close()

    async def settle_left(self) -> None:
        """Objects of the reader's snapshot are never written: say so instead of losing the change."""
        changed = self._source.changed_object if self._source is not None else None
        if changed is not None:
            raise UsageError(
                f"stream: {changed} objects of a stream were changed, but its reader is read-only: write with "
                f"partition.bulk.update(...), or walk the table with ctx.chunks"
            )


class SnapshotReader:
    """The reader: a server-side cursor in a REPEATABLE READ, READ ONLY transaction.

    Where rows are plain, the driver reads them, and the next partition while the job works on this one.

    Args:
        connection: its own one, which it closes.
        shape: what the rows look like.
    """

    def __init__(self, connection: AsyncConnection, shape: RowShape) -> None:
        self._connection = connection
        self._shape = shape
        self._session: AsyncSession | None = None
        self._result: AsyncResult[Any] | None = None
        self._cursor: Any = None
        self._ahead: asyncio.Task[tuple[list[Row], bool]] | None = None
        self._opened_at = time.monotonic()
        #: Whether the last partition was the last.
        self.at_end = False

    @property
    def age(self) -> float:
        """Seconds since the snapshot was taken."""
        return time.monotonic() - self._opened_at

    async def open(self, statement: Select[Any], values: dict[str, Any]) -> None:
        """Begin the transaction and the cursor."""
        connection = self._connection
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # It is idle in its transaction while the job works on a partition, and may be so.
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        if self._shape.may_be_plain:
            plain = CompiledStatement(statement, connection.dialect)
            sql, arguments = plain.bind(values)
            raw = (await Driver.from_connection(connection)).raw
            prepared = await raw.prepare(sql, record_class=Row)
            if self._shape.fits(plain, prepared.get_attributes(), connection.dialect):
                self._cursor = await prepared.cursor(*arguments)
                return
        self._session = ScopedSession(bind=connection, expire_on_commit=False, autoflush=False)
        options = {"yield_per": _BUFFER_ROWS}
        self._result = await self._session.stream(statement, values, execution_options=options)

    async def next_page(self, size: int, *, ahead: bool = True) -> Page:
        """Return the next partition, of at most so many rows; an empty one at the end.

        Args:
            size: rows.
            ahead: begin to read the one after it.
        """
        if self._cursor is None:
            assert self._result is not None  # noqa: S101
            found = await self._result.fetchmany(size)
            self.at_end = len(found) < size
            return self._shape.page(found)
        begun, self._ahead = self._ahead, None
        found, self.at_end = await (begun if begun is not None else self._fetch(size))
        if ahead and not self.at_end:
            self._ahead = asyncio.ensure_future(self._fetch(size))
        return self._shape.page(found)

    async def _fetch(self, size: int) -> tuple[list[Row], bool]:
        with suspended():
            found: list[Row] = await self._cursor.fetch(size)
        return found, len(found) < size

    @property
    def changed_object(self) -> str | None:
        """Name of the class of an object that the job has changed, or None."""
        if self._session is None or not self._session.dirty:
            return None
        return type(next(iter(self._session.dirty))).__name__

    async def close(self) -> None:
        """End the transaction, and give the connection back; where it is lost, nothing is lost with it."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await run_to_completion(cancel_and_wait(ahead))
        try:
            if self._session is not None:
                await run_to_completion(roll_back(self._session.close()))
            await run_to_completion(roll_back(self._connection.rollback()))
        finally:
            await run_to_completion(self._connection.close())


async def resume_key(connection: AsyncConnection, statement: Select[Any]) -> tuple[Keyset | None, str]:
    """Return the key after which a result can be gone on with, or None and the reason why there is none."""
    clauses = read_select_clauses(statement)
    problem = _shape_problem(statement, clauses)
    if problem:
        return None, problem
    expressions = [
        getattr(clause, "element", clause) if _is_reference(clause) else clause for clause in clauses.order_by
    ]
    parts = []
    for expression in expressions:
        column = underlying_column(expression)
        if column is None:
            return None, f"it is ordered by {expression}, which is no column of a table"
        try:
            parts.append(key_part(expression, column))
        except UnsupportedStatement as error:
            return None, str(error)
    keyset = Keyset(parts)
    await refuse_missing_table(connection, keyset, kind="stream")
    ordered = {part.column for part in parts}
    sources = walked_tables(statement)
    for part in parts:
        if not selects_from(statement, part):
            return None, f"it is ordered by {part.expression}, which is in none of its tables under that name"
    if clauses.group_by:
        grouped = [underlying_column(clause) for clause in clauses.group_by]
        if not set(grouped) <= ordered:
            return None, "its order does not hold all columns of its GROUP BY"
        nullable = [part.column.name for part in parts if part.column.nullable]
        if nullable:
            return None, f"{', '.join(nullable)} can be null, and rows after a null cannot be told"
        if len(parts) != len(grouped):
            return None, "its order holds more than the columns of its GROUP BY"
        if any(isinstance(element, Join) and (element.isouter or element.full) for element in _sources(statement)):
            return None, "it has an outer join, and its groups can be of null"
        return await column_types(connection, keyset), ""
    if len(sources) != 1 or not _is_plain(sources[0]):
        return None, "it reads more than one plain table, and rows of one key can be repeated"
    functions = [str(getattr(element, "name", "")) for element in _functions(statement)]
    if functions and await returns_sets(connection, functions):
        return None, "it has a function that returns several rows, which have one key"
    found = await look_key_up(connection, keyset, kind="stream")
    return (None, found) if isinstance(found, str) else (found, "")


def _shape_problem(statement: Select[Any], clauses: SelectClauses) -> str | None:
    if not clauses.order_by:
        return "it has no ORDER BY"
    if clauses.limit or clauses.offset:
        return "it has a LIMIT or OFFSET"
    if clauses.distinct:
        return "it has a DISTINCT"
    if clauses.extended:
        return "it has a syntax extension, e.g. distinct_on()"
    if any(isinstance(element, Over) for element in visitors.iterate(statement)):
        return "it has window functions"
    return None


def _is_reference(clause: Any) -> bool:
    return str(getattr(clause, "__visit_name__", "")).endswith("label_reference")


def _is_plain(source: Any) -> bool:
    return isinstance(source, Table) or (isinstance(source, Alias) and isinstance(source.element, Table))


def _sources(statement: Select[Any]) -> list[Any]:
    return [element for source in statement.get_final_froms() for element in visitors.iterate(source)]


def _functions(statement: Select[Any]) -> list[FunctionElement[Any]]:
    found = [element for column in statement.selected_columns for element in visitors.iterate(column)]
    return [element for element in found if isinstance(element, FunctionElement)]
