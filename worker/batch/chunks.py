"""`ctx.chunks`: rows by key, a transaction a batch, locked while the job changes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import ARRAY, Select, any_, func, inspect, tuple_
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData

from worker.batch.batch import Batch, unwrap
from worker.batch.catalog import check_key, estimate_rows, sql_text
from worker.batch.keyset import KeyPart, Keyset, key_part, underlying_column
from worker.batch.loop import Host, Loop
from worker.db.scopes import ScopedSession
from worker.errors import StatementRefused
from worker.ledger import StepRecord

T = TypeVar("T")


class Chunks(Loop, Generic[T]):
    """An `async for` over batches of rows; see `JobContext.chunks`."""

    kind = "chunks"

    def __init__(
        self,
        host: Host,
        statement: Select[Any],
        *,
        size: int | None,
        lock: bool,
        by: Any,
        name: str | None,
    ) -> None:
        super().__init__(host, name=name, size=size)
        _refuse_unwalkable(statement)
        self._lock = lock
        self._statement = statement
        self._keyset = _resolve_key(statement, by)
        self._width = len(statement.column_descriptions)
        self._is_entity = _entity(statement) is not None
        self._upper: list[Any] = []

    def __aiter__(self) -> AsyncIterator[Batch[T]]:
        iterator = _ChunkIterator[T](self)
        self.hold(iterator)
        return iterator

    async def _open(self, name: str) -> StepRecord:
        connection, keyset = self.run.connection, self._keyset
        spec = self.spec(name, sql_text(self._statement), keyset)
        step = self.run.known_step(spec)
        if step is not None and step.done:
            return step
        await check_key(connection, keyset, kind=self.kind)
        if step is None:
            keys = self._keys()
            last = keys.order_by(*keyset.order_by(reverse=True)).limit(1)
            upper = (await connection.execute(last)).one_or_none()
            total = 0 if upper is None else await estimate_rows(connection, self._statement, {})
            step = await self.run.open_step(
                spec,
                upper_bound=None if upper is None else keyset.encode(upper),
                total=total,
                done=upper is None,
            )
        if step.upper_bound is not None:
            self._upper = keyset.decode(step.upper_bound)
        self._first_read = self._read(resumed=False)
        self._next_read = self._read(resumed=True)
        return step

    async def next_batch(self) -> Batch[T] | None:
        """Commit the batch before, obey orders, read the next one; None at the end of the walk."""
        if self._step is None:
            if not await self.begin():
                return None
        else:
            await self.commit(done=self._reached_upper())
        if self.step.done:
            self.end()
            return None
        await self._host.boundary(resumable=True)
        while True:
            session, bulk = self.open_batch()
            rows, keys = await self._fetch(session)
            if rows:
                break
            # Nothing came back. At the end of the walk there are no keys either; else they were changed by
            # others between the choice of the rows and their lock, and a new snapshot sees them as they are.
            more = await session.execute(self._remaining().limit(1), self._values())
            end = more.one_or_none() is None
            await session.end(commit=False)
            self._session = None
            if end:
                await self.mark_done()
                self.end()
                return None
        await self.refuse_deadly_batch(keys[0], keys[-1], len(rows))
        self._pending_first, self._pending, self._pending_rows = keys[0], keys[-1], len(rows)
        if not self._lock:
            # The read is over before the body runs: it holds no transaction until its first own statement.
            await session.end_read()
        return Batch(
            rows,
            session,
            bulk,
            number=self.number,
            first_key=unwrap(keys[0]),
            last_key=unwrap(keys[-1]),
            idempotency_key=self.idempotency_key(),
        )

    def cursor_of_pending(self) -> list[Any] | None:
        assert self._pending is not None  # noqa: S101
        return self._keyset.encode(self._pending)

    def _reached_upper(self) -> bool:
        return self._pending is not None and list(self._pending) == self._upper

    def _values(self) -> dict[str, Any]:
        values = self._keyset.values("upper", self._upper)
        if self.step.cursor is not None:
            values |= self._keyset.values("after", self._keyset.decode(self.step.cursor))
        return values

    async def _fetch(self, session: ScopedSession) -> tuple[Sequence[T], list[list[Any]]]:
        statement = self._first_read if self.step.cursor is None else self._next_read
        result = await session.execute(statement, self._values())
        if self._is_entity:
            result = result.unique()  # joinedload of a collection repeats its owner
        found = result.all()
        if not found:
            return [], []
        width = self._width
        keys = [list(found[0][width:]), list(found[-1][width:])]
        if width == 1:
            return [row[0] for row in found], keys
        names = list(found[0]._fields[:width])
        plain: Any = IteratorResult(SimpleResultMetaData(names), iter([tuple(row)[:width] for row in found]))
        return plain.all(), keys

    def _keys(self) -> Select[Any]:
        keys = self._statement.with_only_columns(*self._keyset.columns, maintain_column_froms=True)
        keys._with_options = ()  # loader options of an entity that this statement does not select
        # A join can repeat a row of the walked table: a batch must not end between its repetitions.
        return keys.distinct() if _has_joins(self._statement) else keys

    def _remaining(self, *, resumed: bool | None = None) -> Select[Any]:
        resumed = self.step.cursor is not None if resumed is None else resumed
        keys = self._keys().where(self._keyset.up_to())
        return keys.where(self._keyset.after()) if resumed else keys

    def _read(self, *, resumed: bool) -> Select[Any]:
        """Return the statement that reads a batch.

        The keys of a batch are chosen by a subquery that PostgreSQL runs once, under the statement's snapshot;
        the rows are then found by them. ORDER BY with LIMIT straight above FOR UPDATE would do as well, until
        somebody moves a row's key while we wait for its lock: the row comes back with its new key, in its old
        place, and as the last one it would carry the cursor past rows that were never read. Here such a row
        fails the recheck of its key and is dropped, as the promise has it ("may be done or not").
        """
        columns = self._keyset.columns
        keys = self._remaining(resumed=resumed).order_by(*self._keyset.order_by()).limit(self.size)
        chosen = keys.correlate(None)
        if len(columns) == 1:
            array = func.array(chosen.scalar_subquery(), type_=ARRAY(self._keyset.parts[0].column.type))
            condition = columns[0] == any_(array)
        else:
            condition = tuple_(*columns).in_(chosen)
        read = self._statement.add_columns(*columns).where(condition).order_by(*self._keyset.order_by())
        if self._lock:
            read = read.with_for_update(of=_lock_target(self._statement, self._keyset), key_share=True)
        return read


class _ChunkIterator(AsyncIterator[Batch[T]]):
    """Held by the `async for` alone: when it is gone, the job has left the loop."""

    def __init__(self, chunks: Chunks[T]) -> None:
        self._chunks = chunks

    async def __anext__(self) -> Batch[T]:
        batch = await self._chunks.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch


def _refuse_unwalkable(statement: Any) -> None:
    if not isinstance(statement, Select):
        raise StatementRefused(f"chunks takes a select() of an entity or of columns, not {type(statement).__name__}")
    clauses = {
        "OFFSET": statement._offset_clause is not None,
        "LIMIT": statement._limit_clause is not None or statement._fetch_clause is not None,
        "DISTINCT": statement._distinct or bool(statement._distinct_on),
        "GROUP BY": bool(statement._group_by_clauses),
        "HAVING": bool(statement._having_criteria),
        "an ORDER BY of its own": bool(statement._order_by_clauses),
        "FOR UPDATE": statement._for_update_arg is not None,
    }
    reasons = {
        "OFFSET": "the walk goes by key, and has its place in the ledger",
        "LIMIT": "say size= for the batch, or where() for the part of the table",
        "DISTINCT": "the rows of a walk are told by their key, and locked: use ctx.stream",
        "GROUP BY": "groups are no rows that could be locked: use ctx.stream",
        "HAVING": "groups are no rows that could be locked: use ctx.stream",
        "an ORDER BY of its own": "the walk's order is its key: say by=",
        "FOR UPDATE": "the walk locks its rows itself: say lock=",
    }
    for clause, present in clauses.items():
        if present:
            raise StatementRefused(f"chunks cannot walk a statement with {clause}: {reasons[clause]}")


def _resolve_key(statement: Select[Any], by: Any) -> Keyset:
    if by is not None:
        return Keyset([_part(expression) for expression in (by if isinstance(by, list | tuple) else [by])])
    first = statement.column_descriptions[0]
    entity = _entity(statement)
    if entity is not None:
        inspected: Any = inspect(entity)
        mapper = inspected.mapper
        keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        return Keyset([_part(getattr(inspected.entity, key)) for key in keys])
    column = underlying_column(first["expr"])
    table = getattr(first["expr"], "table", None)
    if column is None or table is None or not list(table.primary_key):
        raise StatementRefused("chunks: no primary key to walk by is found in this statement: say by=")
    return Keyset([_part(part) for part in table.primary_key])


def _part(expression: Any) -> KeyPart:
    column = underlying_column(expression)
    if column is None:
        raise StatementRefused(f"chunks: by={expression} is no column of a table")
    return key_part(expression, column)


def _entity(statement: Select[Any]) -> Any:
    """Return the mapped class or alias that the first column is of; None for one of a plain table."""
    return statement.column_descriptions[0].get("entity")


def _lock_target(statement: Select[Any], keyset: Keyset) -> Any:
    entity = _entity(statement)
    return entity if entity is not None else keyset.parts[0].expression.table


def _has_joins(statement: Select[Any]) -> bool:
    froms = statement.get_final_froms()
    return bool(statement._setup_joins) or len(froms) > 1 or any(hasattr(item, "onclause") for item in froms)
