"""`ctx.stream`: one server-side cursor, one snapshot, a writing transaction for each partition."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, Literal, TypeVar, cast

from sqlalchemy import Select, Table, text
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncResult, AsyncSession
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import Over

from worker.batch.batch import Batch, unwrap
from worker.batch.catalog import estimate_rows, key_problem, sql_text
from worker.batch.keyset import Keyset, key_part, underlying_column
from worker.batch.loop import Host, Loop
from worker.db.scopes import ScopedSession, settle
from worker.errors import LonghaulError, StatementRefused
from worker.ledger import StepRecord

logger = logging.getLogger("worker.batch")

T = TypeVar("T")


class Stream(Loop, Generic[T]):
    """An `async for` over partitions of one result; see `JobContext.stream`."""

    kind = "stream"

    def __init__(
        self,
        host: Host,
        statement: Select[Any],
        *,
        size: int | None,
        restart: Literal["from_start"] | None,
        name: str | None,
    ) -> None:
        super().__init__(host, name=name, size=size)
        if not isinstance(statement, Select):
            raise StatementRefused(f"stream takes a select(), not {type(statement).__name__}")
        self._statement = statement
        self._restart = restart
        self._keyset: Keyset | None = None
        self._reader: AsyncConnection | None = None
        self._reader_session: AsyncSession | None = None
        self._result: AsyncResult[Any] | None = None
        self._width = len(statement.column_descriptions)
        self._at_end = False

    def __aiter__(self) -> AsyncIterator[Batch[T]]:
        iterator = _StreamIterator[T](self)
        self.hold(iterator)
        return iterator

    async def _open(self, name: str) -> StepRecord:
        connection = self.run.connection
        self._keyset, problem = await resume_key(connection, self._statement)
        self.resumable = self._keyset is not None
        if self._keyset is None:
            if self._restart != "from_start":
                raise StatementRefused(
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
        step = self.run.known_step(spec)
        if step is None:
            total = await estimate_rows(connection, self._statement, {})
            return await self.run.open_step(spec, upper_bound=None, total=total)
        if self._keyset is None and not step.done and step.rows:
            await self.run.restart_step(step)
        return step

    async def next_batch(self) -> Batch[T] | None:
        """Commit the partition before, obey orders, fetch the next one; None at the end."""
        if self._step is None:
            if not await self.begin():
                return None
        else:
            self._refuse_changed_objects()
            await self.commit(done=self._at_end)
        if self.step.done:
            await self._close_reader()
            self.end()
            return None
        await self._host.boundary(resumable=self.resumable)
        if self._result is None:
            await self._open_reader()
        rows, keys = await self._fetch()
        if not rows:
            await self._close_reader()
            await self.mark_done()
            self.end()
            return None
        self._at_end = len(rows) < self.size
        await self.refuse_deadly_batch(keys[0] if keys else [], keys[-1] if keys else [], len(rows))
        self._pending_first, self._pending = (keys[0], keys[-1]) if keys else (None, None)
        self._pending_rows = len(rows)
        session, bulk = self.open_batch()
        return Batch(
            rows,
            session,
            bulk,
            number=self.number,
            first_key=unwrap(keys[0]) if keys else None,
            last_key=unwrap(keys[-1]) if keys else None,
            idempotency_key=self.idempotency_key(),
        )

    def cursor_of_pending(self) -> list[Any] | None:
        return None if self._keyset is None or self._pending is None else self._keyset.encode(self._pending)

    async def abandon(self) -> None:
        try:
            await self._close_reader()
        finally:
            await super().abandon()

    async def _open_reader(self) -> None:
        """Open the reader: a commit of the writer must not close its cursor, so it has its own connection."""
        database = self._host.database
        self._reader = await database.engine.connect()
        await self._reader.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # It is idle in its transaction while the job works on a partition, and may be so.
        await self._reader.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        statement, values = self._statement, {}
        if self._keyset is not None:
            statement = statement.add_columns(*self._keyset.columns)
            if self.step.cursor is not None:
                statement = statement.where(self._keyset.after())
                values = self._keyset.values("after", self._keyset.decode(self.step.cursor))
        self._reader_session = ScopedSession(bind=self._reader, expire_on_commit=False, autoflush=False)
        options = {"yield_per": self.size}
        self._result = await self._reader_session.stream(statement, values, execution_options=options)

    async def _fetch(self) -> tuple[Sequence[T], list[list[Any]]]:
        assert self._result is not None  # noqa: S101
        found = await self._result.fetchmany(self.size)
        if not found:
            return [], []
        width = self._width
        keys = [list(found[0])[width:], list(found[-1])[width:]] if self._keyset else []
        if width == 1:
            return [row[0] for row in found], keys
        if not self._keyset:
            return cast(Sequence[T], found), keys
        names = list(found[0]._fields[:width])
        plain: Any = IteratorResult(SimpleResultMetaData(names), iter([tuple(row)[:width] for row in found]))
        return plain.all(), keys

    async def _close_reader(self) -> None:
        session, self._reader_session = self._reader_session, None
        reader, self._reader = self._reader, None
        self._result = None
        try:
            if session is not None:
                await settle(session.close())
        finally:
            if reader is not None:
                await settle(reader.close())

    def _refuse_changed_objects(self) -> None:
        """Objects of the reader's snapshot are never written: say so instead of losing the change."""
        session = self._reader_session
        if session is not None and session.dirty:
            changed = type(next(iter(session.dirty))).__name__
            raise LonghaulError(
                f"stream: {changed} objects of a stream were changed, but its reader is read-only: write with "
                f"partition.bulk.update(...), or walk the table with ctx.chunks"
            )


class _StreamIterator(AsyncIterator[Batch[T]]):
    """Held by the `async for` alone: when it is gone, the job has left the loop."""

    def __init__(self, stream: Stream[T]) -> None:
        self._stream = stream

    async def __anext__(self) -> Batch[T]:
        batch = await self._stream.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch


async def resume_key(connection: AsyncConnection, statement: Select[Any]) -> tuple[Keyset | None, str]:
    """Return the key after which a result can be gone on with, or None and the reason why there is none."""
    problem = _shape_problem(statement)
    if problem:
        return None, problem
    expressions = [
        getattr(clause, "element", clause) if _is_reference(clause) else clause
        for clause in statement._order_by_clauses
    ]
    parts = []
    for expression in expressions:
        column = underlying_column(expression)
        if column is None:
            return None, f"it is ordered by {expression}, which is no column of a table"
        try:
            parts.append(key_part(expression, column))
        except StatementRefused as error:
            return None, str(error)
    keyset = Keyset(parts)
    ordered = {part.column for part in parts}
    if statement._group_by_clauses:
        grouped = [underlying_column(clause) for clause in statement._group_by_clauses]
        if not set(grouped) <= ordered:
            return None, "its order does not hold all columns of its GROUP BY"
        nullable = [part.column.name for part in parts if part.column.nullable]
        if nullable:
            return None, f"{', '.join(nullable)} can be null, and rows after a null cannot be told"
        if len(parts) != len(grouped):
            return None, "its order holds more than the columns of its GROUP BY"
        return keyset, ""
    tables = {table for source in statement.get_final_froms() for table in _tables(source)}
    if len(tables) != 1 or ordered - set(keyset.table.columns):
        return None, "it joins several tables, and rows of one key can be repeated"
    reason = await key_problem(connection, keyset)
    return (None, reason) if reason else (keyset, "")


def _shape_problem(statement: Select[Any]) -> str | None:
    if not statement._order_by_clauses:
        return "it has no ORDER BY"
    if statement._limit_clause is not None or statement._offset_clause is not None:
        return "it has a LIMIT or OFFSET"
    if statement._distinct or statement._distinct_on:
        return "it has a DISTINCT"
    if any(isinstance(element, Over) for element in visitors.iterate(statement)):
        return "it has window functions"
    return None


def _is_reference(clause: Any) -> bool:
    return str(getattr(clause, "__visit_name__", "")).endswith("label_reference")


def _tables(source: Any) -> set[Table]:
    found = {element for element in visitors.iterate(source) if isinstance(element, Table)}
    return found or {source}
