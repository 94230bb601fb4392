"""`ctx.sweep`: one UPDATE, DELETE or INSERT ... SELECT over a table, inside the server, in ranges of its key."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Delete, Insert, Select, Table, Update, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.batch.catalog import count_rows, ensure_key_orders, sql_text, table_name, warn_of_unindexed_children
from worker.batch.compiled import CompiledStatement
from worker.batch.fingerprint import fingerprint
from worker.batch.key_choice import check_walkable, choose_key
from worker.batch.key_order import ensure_order_is_served
from worker.batch.key_progress import KeyProgress
from worker.batch.keyset import SIZE, Keyset, key_part, underlying_column
from worker.batch.partitions import names_one_table, within
from worker.batch.range_ends import Division, find_ranges
from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_statements import WalkStatements
from worker.cancellation import cancel_and_wait, run_to_completion
from worker.db.driver import Driver
from worker.db.statement_internals import is_same_table, replace_source, rewrites_statements, updated_names
from worker.errors import UnsupportedStatement
from worker.ledger.records import RangeBounds

Sweepable = Update | Delete | Insert


class SweepSource:
    """The ranges of a table's key, each with the statement that changes its rows; see `JobContext.sweep`.

    A range holds `size` rows of the table, whether they match or not: its end is found in the index alone, and each row
    is examined once. The walk ends even while other sessions insert matching rows, because its last key is read when it
    begins.

    Args:
        statement: The statement.
        engine: Provides a separate connection that looks up the ends of ranges.
        by: The key; None for the primary key.
        allow_sort: Whether each range may sort the rest of the table.
    """

    kind = "sweep"

    def __init__(self, statement: Sweepable, engine: AsyncEngine, *, by: Any = None, allow_sort: bool = False) -> None:
        if not isinstance(statement, Update | Delete | Insert):
            raise UnsupportedStatement(f"sweep takes an update(), delete() or insert(), not {type(statement).__name__}")
        if statement.returning_column_descriptions:
            raise UnsupportedStatement("sweep cannot hand rows out: RETURNING is for ctx.chunks")
        self._statement = statement
        self._engine = engine
        self._allow_sort = allow_sort
        self._keyset: Keyset = _choose_key(statement, by)
        self._upper: list[Any] = []
        self._within: list[ColumnElement[bool]] = []  # the keys that were selected, for the ranges
        self._condition: str | None = None  # of the partition that is walked
        self._last: list[Any] | None = None
        self._progress: KeyProgress | None = None
        self._ends: RangeEnds | None = None
        self.text = sql_text(statement)
        self.fingerprint = self._make_fingerprint()
        _ensure_key_stays(statement, self._keyset)

    async def open(self, step: OpenStep) -> Bounds:
        """Check the key, look the bounds up, and compile the statements."""
        connection = step.connection
        keyset = self._keyset = await ensure_key_orders(connection, self._keyset, kind=self.kind)
        if step.selection is not None:
            self._statement = step.selection.apply(self._statement, keyset)
            self._within = [keyset.at_or_after(step.selection.first)] if step.selection.first is not None else []
        if step.only_keys is not None:
            self._within = [keyset.among(step.only_keys)]
        table = keyset.in_schema(select(*keyset.columns).order_by(*keyset.order_by()))
        await ensure_order_is_served(connection, keyset, table, kind=self.kind, allow_sort=self._allow_sort)
        if isinstance(self._statement, Delete):
            await warn_of_unindexed_children(connection, keyset)
        self._last, total = step.last, 0
        if step.is_new:
            matching = self._matching()
            ends = matching.with_only_columns(*keyset.cursor_columns, maintain_column_froms=True)
            last = (await connection.execute(ends.order_by(*keyset.order_by(reverse=True)).limit(1))).one_or_none()
            if last is not None:
                self._last = keyset.encode(last)
                total = await count_rows(connection, matching, exactly=step.count_exactly)
        if self._last is not None:
            self._upper = keyset.decode(self._last)
            if not step.count_exactly:
                self._progress = await KeyProgress.look_up(step, keyset, self._last)
            self._compile()
            self._ends = RangeEnds(await self._engine.connect(), self._first_end, self._next_end)
        return Bounds(
            key=keyset.describe(),
            last=self._last,
            total=total,
            is_empty=self._last is None,
            table=table_name(keyset),
            begins_in_transaction=True,
        )

    def _compile(self) -> None:
        dialect = self._engine.dialect
        self._write_first, self._write_next = (
            CompiledStatement(self._write(resumed=resumed), dialect) for resumed in (False, True)
        )
        self._first_end, self._next_end = (
            CompiledStatement(self._range_end(resumed=resumed), dialect) for resumed in (False, True)
        )

    async def split(self, connection: AsyncConnection, cursor: Any, count: int, size: int) -> list[RangeBounds]:
        """Return ranges with the same number of rows of the table; see `RangedSource`."""
        assert self._last is not None  # noqa: S101
        keys = self._keyset.in_schema(select(*self._keyset.columns)).where(self._keyset.up_to(), *self._within)
        values = self._keyset.values("upper", self._upper)
        if cursor is not None:
            keys = keys.where(self._keyset.after())
            values |= self._keyset.values("after", self._keyset.decode(cursor))
        division = Division(
            self._keyset, keys, values, count, size, by_partition=self._names_one_table(), is_whole=not self._within
        )
        return await find_ranges(connection, division, lower=cursor, last=self._last)

    def _names_one_table(self) -> bool:
        """Return whether a plain name of a column is unambiguous in the statement."""
        if isinstance(self._statement, Insert):
            return names_one_table(_get_select(self._statement))
        return not _reads_other_tables(self._statement, self._keyset)

    def enter_range(self, last: list[Any], condition: str | None) -> None:
        """Let the walk return the keys of one range; see `RangedSource`."""
        assert self._ends is not None  # noqa: S101
        self._last, self._upper = last, self._keyset.decode(last)
        if self._condition != condition:
            self._condition = condition
            self._compile()
        self._ends.enter_range(self._first_end, self._next_end)

    def describe(self, size: int) -> WalkStatements:
        """Return the statements of the first range, as if it were the whole walk; see `DescribedSource`."""
        keyset, statement = self._keyset, self._statement
        change: Any = type(statement).__name__.upper()
        return WalkStatements(
            keyset=keyset,
            keys=keyset.in_schema(select(*keyset.columns).order_by(*keyset.order_by())),
            statement=self._write(resumed=False),
            values=keyset.values("last", self._upper),
            change=change,
            target=statement.table if isinstance(statement, Insert) else None,
        )

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[Any] | None:
        """Return the next range, with the statement that changes its rows."""
        assert self._ends is not None  # noqa: S101
        behind = {} if cursor is None else self._keyset.values("after", self._keyset.decode(cursor))
        window = self._keyset.values("upper", self._upper) | {SIZE.key: size} | behind
        last = await self._ends.next_end(window, resumed=cursor is not None)
        if last is None:
            return None
        at = self._keyset.encode(last)
        is_last = at == self._last
        ahead = None if is_last else window | self._keyset.values("after", self._keyset.decode(at))
        return Page(
            cursor=at,
            last_key=at,
            share=None if self._progress is None else self._progress.share(at),
            is_last=is_last,
            examined=self._ends.size,
            change=partial(self._change, self._keyset.values("last", self._keyset.decode(at)), behind, ahead),
        )

    async def _change(
        self,
        last: dict[str, Any],
        behind: dict[str, Any],
        ahead: dict[str, Any] | None,
        transaction: BatchTransaction,
    ) -> int:
        """Run the statement on one range, while the end of the next one is looked up."""
        if ahead is not None and self._ends is not None:
            self._ends.look_ahead(ahead)
        write = self._write_next if behind else self._write_first
        if not write.needs_context and not rewrites_statements(transaction.connection):
            raw = await transaction.driver()
            sql, arguments = write.bind(last | behind)
            status: str = await raw.execute(sql, *arguments)
            return int(status.rsplit(" ", 1)[-1])
        connection = await transaction.session.connection()
        result = await connection.execute(self._write(resumed=bool(behind)), last | behind)
        return result.rowcount

    async def close(self) -> None:
        """Return the connection that looks up ranges."""
        ends, self._ends = self._ends, None
        if ends is not None:
            await ends.close()

    def _make_fingerprint(self) -> str:
        """Return the parts that determine which rows change: the kind of change, the table, the WHERE, and the key."""
        statement, verb = self._statement, type(self._statement).__name__.upper()
        rows = self._matching()
        if not isinstance(statement, Insert) and statement.whereclause is not None:
            rows = select(*self._keyset.columns).where(statement.whereclause)
        return f"{verb} {fingerprint(rows.order_by(None).order_by(*self._keyset.order_by()))}"

    def _matching(self) -> Select[Any]:
        """Return the keys that the statement changes; if its WHERE reads other tables, the keys of the whole table."""
        if isinstance(self._statement, Insert):
            return _get_select(self._statement).with_only_columns(*self._keyset.columns, maintain_column_froms=True)
        keys = self._keyset.in_schema(select(*self._keyset.columns))
        where = self._statement.whereclause
        return keys if where is None or _reads_other_tables(self._statement, self._keyset) else keys.where(where)

    def _range_end(self, *, resumed: bool) -> Select[Any]:
        """Return the key of the last row of a range in the form of the cursor: Python has no date 10000-01-01."""
        keys = select(*self._keyset.columns).where(self._keyset.up_to(), *self._within, *within(self._condition))
        if resumed:
            keys = keys.where(self._keyset.after())
        chosen = keys.order_by(*self._keyset.order_by()).limit(SIZE).subquery()
        ends = self._keyset.over(list(chosen.columns))
        end = select(*ends.cursor_columns).order_by(*ends.order_by(reverse=True)).limit(1)
        return self._keyset.in_schema(end)

    def _write(self, *, resumed: bool) -> Sweepable:
        conditions = [self._keyset.up_to("last"), *([self._keyset.after()] if resumed else [])]
        conditions += [*self._within, *within(self._condition)]
        if not isinstance(self._statement, Insert):
            return self._statement.where(*conditions)
        return replace_source(self._statement, _get_select(self._statement).where(*conditions))


class RangeEnds:
    """Looks up the ends of ranges on a separate connection: the next end while the server processes the current range.

    The ends only divide the keys; the statement itself finds the rows that it changes.

    Args:
        connection: The connection, which it closes.
        first: The statement for the first range.
        following: The statement for the ranges behind a cursor.
    """

    def __init__(self, connection: AsyncConnection, first: CompiledStatement, following: CompiledStatement) -> None:
        self._connection = connection
        self._first = first
        self._following = following
        self._driver: Driver | None = None
        self._ahead: asyncio.Task[Any] | None = None
        self._forgotten: asyncio.Task[Any] | None = None
        #: The size of the range whose end was looked up last.
        self.size = self._ahead_size = 0

    def look_ahead(self, values: dict[str, Any]) -> None:
        """Begin to look up the end of the range behind a cursor."""
        self._ahead_size = values[SIZE.key]
        self._ahead = asyncio.ensure_future(self._find(self._following, values, self._forgotten))

    async def next_end(self, values: dict[str, Any], *, resumed: bool) -> Any:
        """Return the key of the last row of the next range; None if there is no row."""
        ahead, self._ahead = self._ahead, None
        self.size = values[SIZE.key] if ahead is None else self._ahead_size
        if ahead is not None:
            return await ahead
        return await self._find(self._following if resumed else self._first, values, self._forgotten)

    async def _find(
        self, statement: CompiledStatement, values: dict[str, Any], before: asyncio.Task[Any] | None
    ) -> Any:
        if before is not None:
            await asyncio.wait({before})  # it uses the connection
        sql, arguments = statement.bind(values)
        if self._driver is None:
            self._driver = await Driver.from_connection(self._connection)
        async with self._driver.reading() as raw:
            return await raw.fetchrow(sql, *arguments)

    def enter_range(self, first: CompiledStatement, following: CompiledStatement) -> None:
        """Discard the end that was looked up ahead: the walk continues in another range, with these statements."""
        self._first, self._following = first, following
        self._forgotten = self._ahead or self._forgotten
        self._ahead = None

    async def close(self) -> None:
        """Return the connection."""
        for ahead in (self._ahead, self._forgotten):
            if ahead is not None:
                await run_to_completion(cancel_and_wait(ahead))
        self._ahead = self._forgotten = None
        await run_to_completion(self._connection.close())


def _ensure_key_stays(statement: Sweepable, keyset: Keyset) -> None:
    """Raise `UnsupportedStatement` if the statement sets the key that it is walked by."""
    if not isinstance(statement, Update):
        return
    names = set(updated_names(statement))
    moved = [part.column.name for part in keyset.parts if part.column.key in names]
    if moved:
        raise UnsupportedStatement(
            f"sweep: the statement sets {', '.join(moved)}, the key that it walks by: a row that moves ahead would be "
            f"changed twice; walk by another unique key with by="
        )


def _get_select(statement: Insert) -> Select[Any]:
    """Return the select of an INSERT ... SELECT."""
    check_walkable(statement.select, kind="sweep: insert().from_select()")
    found: Any = statement.select
    return found  # type: ignore[no-any-return]


def _choose_key(statement: Sweepable, by: Any) -> Keyset:
    if isinstance(statement, Insert):
        return choose_key(_get_select(statement), by, kind="sweep")
    table = statement.table
    if not isinstance(table, Table):
        raise UnsupportedStatement(f"sweep: {table} is not a table")
    if by is None:
        if not list(table.primary_key):
            raise UnsupportedStatement(f"sweep: {table.fullname} has no primary key: set by=")
        return Keyset([key_part(column, column) for column in table.primary_key], statement)
    parts = []
    for expression in by if isinstance(by, list | tuple) else [by]:
        column = underlying_column(expression)
        if column is None or not is_same_table(column.table, table):
            raise UnsupportedStatement(f"sweep: by={expression} is not a column of {table.fullname}")
        direction = key_part(expression, column).descending
        parts.append(key_part(column.desc() if direction else column, column))
    return Keyset(parts, statement)


def _reads_other_tables(statement: Update | Delete, keyset: Keyset) -> bool:
    where = statement.whereclause
    froms = [] if where is None else select(literal(1)).where(where).get_final_froms()
    return any(not is_same_table(table, keyset.table) for table in froms)
