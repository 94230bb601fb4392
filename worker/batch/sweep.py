"""`ctx.sweep`: one UPDATE, DELETE or INSERT ... SELECT over a table, in the server, in ranges of its key."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from sqlalchemy import Delete, Insert, Select, Table, Update, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import checked_key, sql_text
from worker.batch.compiled import CompiledStatement
from worker.batch.key_choice import key_of_select, refuse_unwalkable
from worker.batch.keyset import SIZE, Keyset, key_part, underlying_column
from worker.batch.options import Count
from worker.batch.page import Page
from worker.batch.sizing import Size
from worker.batch.transaction import BatchTransaction
from worker.batch.walk import Walk, WalkHost
from worker.cancellation import cancel_and_wait, run_to_completion
from worker.db.driver import Driver
from worker.db.statement_internals import is_same_table, replace_source, updated_names
from worker.errors import UnsupportedStatement
from worker.ledger import StepRecord

Sweepable = Update | Delete | Insert


class Sweep(Walk):
    """A set-based walk; see `JobContext.sweep`.

    A range holds `size` rows of the table, whether they match or not: its end is found on the index alone, each
    row is looked at once, and no batch takes longer than a range does. It ends even while others insert rows
    that match, because its last key was taken when it began.
    """

    kind = "sweep"

    def __init__(
        self, host: WalkHost, statement: Sweepable, *, size: Size | None, by: Any, name: str | None, count: Count
    ) -> None:
        super().__init__(host, name=name, size=size, count=count)
        if not isinstance(statement, Update | Delete | Insert):
            raise UnsupportedStatement(f"sweep takes an update(), delete() or insert(), not {type(statement).__name__}")
        if statement.returning_column_descriptions:
            raise UnsupportedStatement("sweep cannot hand rows out: RETURNING is for ctx.chunks")
        self._statement = statement
        self._keyset: Keyset = _resolve_key(statement, by)
        self._refuse_moving_key()

    async def run_to_end(self) -> int:
        """LeavableWalk the table. Returns the rows changed, in earlier tries of the run too."""
        self._walking = True
        try:
            if await self.begin():
                await self._walk()
        except BaseException:
            await self.fail()
            raise
        finally:
            self._walking = False
        self.end()
        return self.step.rows

    async def _walk(self) -> None:
        ahead = RangeEnds(await self._host.database.engine.connect(), self._first_end, self._next_end)
        try:
            while not self.step.done:
                await self._host.boundary(resumable=True, table=self.table)
                transaction = self.open_batch()
                values = self._values()
                last = await ahead.end_of(values, resumed=self._resumed)
                if last is None:
                    self._transaction = None
                    await self.mark_done()
                    return
                parts = len(self._keyset.parts)
                cursor = self._keyset.encode(last[parts:])
                self._page = Page((), [], list(last[:parts]), cursor)
                await self.refuse_deadly_batch(self._page, self.size)
                decoded = self._keyset.decode(cursor)
                self._asked = ahead.asked
                if cursor != self.step.upper_bound:
                    ahead.look(values | self._keyset.values("after", decoded) | {SIZE.key: self.size})
                self._rows = await self._change(transaction, decoded)
                await self.commit(done=cursor == self.step.upper_bound)
        finally:
            await ahead.close()

    @property
    def _resumed(self) -> bool:
        return self.step.cursor is not None

    async def _change(self, transaction: BatchTransaction, last: list[Any]) -> int:
        values = self._keyset.values("last", last) | self._behind()
        write = self._write_next if self._resumed else self._write_first
        if not write.needs_context:
            raw = await transaction.driver()
            sql, arguments = write.bind(values)
            status: str = await raw.execute(sql, *arguments)
            return int(status.rsplit(" ", 1)[-1])
        connection = await transaction.session.connection()
        result = await connection.execute(self._write(resumed=self._resumed), values)
        return result.rowcount

    async def _open(self, name: str) -> StepRecord:
        connection = self.run.connection
        spec = self.spec(name, sql_text(self._statement), self._keyset)
        step = self.run.checkpoints.find_step(spec)
        if step is not None and step.done:
            return step
        keyset = self._keyset = await checked_key(connection, self._keyset, kind=self.kind)
        if step is None:
            matching = self._matching()
            ends = matching.with_only_columns(*keyset.cursor_columns, maintain_column_froms=True)
            last = ends.order_by(*keyset.order_by(reverse=True)).limit(1)
            upper = (await connection.execute(last)).one_or_none()
            step = await self.run.checkpoints.open_step(
                spec,
                upper_bound=None if upper is None else keyset.encode(upper),
                total=0 if upper is None else await self._total(connection, matching),
                done=upper is None,
            )
        if step.upper_bound is not None:
            self._upper = keyset.decode(step.upper_bound)
        self._first_end, self._next_end, self._write_first, self._write_next = (
            CompiledStatement(statement, connection.dialect)
            for statement in (
                self._range_end(resumed=False),
                self._range_end(resumed=True),
                self._write(resumed=False),
                self._write(resumed=True),
            )
        )
        return step

    def _matching(self) -> Select[Any]:
        """Return the keys that the statement changes; with other tables in its WHERE, those of the whole table."""
        if isinstance(self._statement, Insert):
            return _source(self._statement).with_only_columns(*self._keyset.columns, maintain_column_froms=True)
        keys = select(*self._keyset.columns)
        where = self._statement.whereclause
        return keys if where is None or _other_tables(self._statement, self._keyset) else keys.where(where)

    def _range_end(self, *, resumed: bool) -> Select[Any]:
        """Return the key of the last row of a range, in Python's types and as it goes into the cursor."""
        keys = select(*self._keyset.columns).where(self._keyset.up_to())
        if resumed:
            keys = keys.where(self._keyset.after())
        chosen = keys.order_by(*self._keyset.order_by()).limit(SIZE).subquery()
        ends = Keyset(
            [replace(part, expression=column) for part, column in zip(self._keyset.parts, chosen.columns, strict=True)]
        )
        return select(*ends.columns, *ends.cursor_columns).order_by(*ends.order_by(reverse=True)).limit(1)

    def _write(self, *, resumed: bool) -> Sweepable:
        conditions = [self._keyset.up_to("last"), *([self._keyset.after()] if resumed else [])]
        if not isinstance(self._statement, Insert):
            return self._statement.where(*conditions)
        return replace_source(self._statement, _source(self._statement).where(*conditions))

    def _refuse_moving_key(self) -> None:
        if not isinstance(self._statement, Update):
            return
        names = updated_names(self._statement)
        moved = [part.column.name for part in self._keyset.parts if part.column.key in names]
        if moved:
            raise UnsupportedStatement(
                f"sweep: the statement sets {', '.join(moved)}, the key that it walks by: a row that moves ahead "
                f"would be changed twice; walk by another unique key with by="
            )


class RangeEnds:
    """Where ranges end: the next one is looked up on a connection of its own while the server works on this one.

    It only parts the keys; what a range changes is up to the statement, whenever its end was looked up.

    Args:
        connection: which it closes.
        first: the statement for the first range.
        next_: that for the ranges after a cursor.
    """

    def __init__(self, connection: AsyncConnection, first: CompiledStatement, next_: CompiledStatement) -> None:
        self._connection = connection
        self._first = first
        self._next = next_
        self._driver: Driver | None = None
        self._ahead: asyncio.Task[Any] | None = None
        #: Rows that were asked for in the range whose end was looked up last.
        self.asked = self._asked_ahead = 0

    def look(self, values: dict[str, Any]) -> None:
        """Begin to look the end of the range after a cursor up."""
        self._asked_ahead = values[SIZE.key]
        self._ahead = asyncio.ensure_future(self._find(self._next, values))

    async def end_of(self, values: dict[str, Any], *, resumed: bool) -> Any:
        """Return the key of the last row of the next range; None where there is no row."""
        ahead, self._ahead = self._ahead, None
        self.asked = values[SIZE.key] if ahead is None else self._asked_ahead
        return await (ahead if ahead is not None else self._find(self._next if resumed else self._first, values))

    async def _find(self, statement: CompiledStatement, values: dict[str, Any]) -> Any:
        sql, arguments = statement.bind(values)
        if self._driver is None:
            self._driver = await Driver.from_connection(self._connection)
        async with self._driver.reading() as raw:
            return await raw.fetchrow(sql, *arguments)

    async def close(self) -> None:
        """Give the connection back."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await run_to_completion(cancel_and_wait(ahead))
        await run_to_completion(self._connection.close())


def _source(statement: Insert) -> Select[Any]:
    """Return the select of an INSERT ... SELECT."""
    refuse_unwalkable(statement.select, kind="sweep: insert().from_select()")
    source: Any = statement.select
    return source  # type: ignore[no-any-return]


def _resolve_key(statement: Sweepable, by: Any) -> Keyset:
    if isinstance(statement, Insert):
        return key_of_select(_source(statement), by, kind="sweep")
    table = statement.table
    if not isinstance(table, Table):
        raise UnsupportedStatement(f"sweep: {table} is no table")
    if by is None:
        if not list(table.primary_key):
            raise UnsupportedStatement(f"sweep: {table.fullname} has no primary key: say by=")
        return Keyset([key_part(column, column) for column in table.primary_key])
    parts = []
    for expression in by if isinstance(by, list | tuple) else [by]:
        column = underlying_column(expression)
        if column is None or column.table is not table:
            raise UnsupportedStatement(f"sweep: by={expression} is no column of {table.fullname}")
        direction = key_part(expression, column).descending
        parts.append(key_part(column.desc() if direction else column, column))
    return Keyset(parts)


def _other_tables(statement: Update | Delete, keyset: Keyset) -> bool:
    where = statement.whereclause
    froms = [] if where is None else select(literal(1)).where(where).get_final_froms()
    return any(not is_same_table(table, keyset.table) for table in froms)
