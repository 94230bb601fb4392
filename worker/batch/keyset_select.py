"""The statements of a walk over a select by its key: the keys behind the cursor, and the rows that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ARRAY, CTE, Select, Subquery, any_, func, inspect, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import count_rows, ensure_key_orders, sql_text, table_name, weigh_rows
from worker.batch.compiled import CompiledStatement
from worker.batch.failing_rows import probe_row
from worker.batch.fingerprint import fingerprint
from worker.batch.key_choice import check_walkable, choose_key, find_entity
from worker.batch.key_order import ensure_order_is_served
from worker.batch.key_progress import KeyProgress
from worker.batch.keyset import SIZE, Keyset
from worker.batch.page import RowShape
from worker.batch.partitions import has_all_rows, names_one_table, within
from worker.batch.range_ends import Division, find_ranges
from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_statements import WalkStatements
from worker.errors import UnsupportedStatement
from worker.ledger.records import RangeBounds


class KeysetSelect:
    """A select and the key that it is walked by.

    Args:
        statement: The select of the job.
        by: The key; None for the primary key.
        lock: Whether the rows are locked.
        allow_sort: Whether each batch may sort the rest of the table, because no index has the order of the walk.
        vouched: Whether the key of a view or a foreign table counts as unique and not null.

    Raises:
        UnsupportedStatement: The statement cannot be walked.
    """

    def __init__(
        self, statement: Select[Any], *, by: Any, lock: bool, allow_sort: bool = False, vouched: bool = False
    ) -> None:
        check_walkable(statement, kind="chunks")
        self._statement = statement
        self._has_joins = _has_joins(statement)
        self._lock = lock
        self._allow_sort = allow_sort or vouched
        self._vouched = vouched
        self._upper: list[Any] = []
        self._condition: str | None = None  # of the partition that is walked
        self._progress: KeyProgress | None = None
        self.keyset: Keyset = choose_key(statement, by, kind="chunks")
        self.fingerprint = fingerprint(self.keys(self.keyset.columns))
        self.text = sql_text(statement)
        self.last: list[Any] | None = None

    async def open(self, step: OpenStep) -> Bounds:
        """Check the key, and look the bounds of the walk up."""
        connection = step.connection
        keyset = self.keyset = await ensure_key_orders(connection, self.keyset, kind="chunks", vouched=self._vouched)
        if step.selection is not None:
            self._statement = step.selection.apply(self._statement, keyset)
        if step.only_keys is not None:
            self._statement = self._statement.where(keyset.among(step.only_keys))
        keys, allow = self.keys(keyset.columns), self._allow_sort or step.only_keys is not None
        await ensure_order_is_served(connection, keyset, keys, kind="chunks", allow_sort=allow)
        self.last, total = step.last, 0
        if step.is_new:
            found = await connection.execute(self.keys(keyset.cursor_columns, reverse=True).limit(1))
            last = found.one_or_none()
            if last is not None:
                self.last = keyset.encode(last[: len(keyset.parts)])
                total = await count_rows(connection, self.keys(keyset.columns), exactly=step.count_exactly)
        if self.last is not None:
            self._upper = keyset.decode(self.last)
            if not step.count_exactly:
                self._progress = await KeyProgress.look_up(step, keyset, self.last)
        self.shape = RowShape(self._statement, keyset)
        row_bytes = await weigh_rows(connection, self._statement, keyset.order_by())
        return Bounds(
            key=keyset.describe(),
            last=self.last,
            total=total,
            is_empty=self.last is None,
            table=table_name(keyset),
            row_bytes=row_bytes,
            begins_in_transaction=True,
        )

    def describe(self, size: int) -> WalkStatements:
        """Return the statements of the first batch; see `DescribedSource`."""
        return WalkStatements(
            keyset=self.keyset,
            keys=self.keys(self.keyset.columns),
            statement=self.batch(resumed=False),
            values=self.window(None, size),
            locks=self._lock,
        )

    def behind(self, cursor: Sequence[Any] | None) -> dict[str, Any]:
        """Return the parameters of "behind the cursor"; none before the first batch."""
        return {} if cursor is None else self.keyset.values("after", self.keyset.decode(cursor))

    def window(self, cursor: Sequence[Any] | None, size: int) -> dict[str, Any]:
        """Return the parameters of "behind the cursor, up to the last key of the walk, at most `size` rows"."""
        return self.keyset.values("upper", self._upper) | {SIZE.key: size} | self.behind(cursor)

    def share(self, cursor: Sequence[Any] | None) -> float | None:
        """Return the part of the walk that is behind a cursor, by its position between first and last key."""
        return None if cursor is None or self._progress is None else self._progress.share(cursor)

    def keys(self, columns: Sequence[Any], *, reverse: bool = False) -> Select[Any]:
        """Return the select of the statement's keys, in the order of the walk."""
        key = self.keyset.columns
        if not self._has_joins:
            keys = self._statement.with_only_columns(*columns, maintain_column_froms=True)
            keys = keys.where(*within(self._condition))
        else:
            # A join can repeat a row of the walked table: a batch must not end between its repetitions. DISTINCT
            # requires the columns that it is ordered by.
            more = [column for column in key if not any(column is other for other in columns)]
            keys = self._statement.with_only_columns(*columns, *more, maintain_column_froms=True).distinct()
        return keys.order_by(*self.keyset.order_by(reverse=reverse))

    def remaining(self, *, resumed: bool) -> Select[Any]:
        """Return the select of the keys up to the last one, behind a cursor if `resumed`."""
        keys = self.keys(self.keyset.columns).where(self.keyset.up_to())
        return keys.where(self.keyset.after()) if resumed else keys

    def next_keys(self, *, resumed: bool) -> Select[Any]:
        """Return the select of the next keys in the form of cursors, with the parameters of `window`."""
        keys = self.keys(self.keyset.cursor_columns).where(self.keyset.up_to()).limit(SIZE)
        return keys.where(self.keyset.after()) if resumed else keys

    async def list_keys(self, transaction: BatchTransaction, cursor: Any, size: int) -> list[list[Any]]:
        """Return the keys of the rows behind a cursor, without reading the rows."""
        keys = CompiledStatement(self.next_keys(resumed=cursor is not None), transaction.connection.dialect)
        sql, arguments = keys.bind(self.window(cursor, size))
        width = len(self.keyset.parts)
        found = await (await transaction.driver()).fetch(sql, *arguments)
        return [self.keyset.encode(row[:width]) for row in found]

    async def is_unreadable(
        self, transaction: BatchTransaction, key: list[Any], blames_row: Callable[[Exception], bool]
    ) -> bool:
        """Return whether the row with a key exists and cannot be read; see `probe_row`."""
        condition, values = self.keyset.one_of(), self.keyset.array_values([key])
        row = self.locked(self.shape.statement.where(condition))
        keys = self._statement.with_only_columns(*self.keyset.cursor_columns, maintain_column_froms=True)
        lock = self.locked(keys.where(condition)) if self._lock else None
        return await probe_row(transaction, row, values, blames_row, lock=lock)

    async def find_unreadable(
        self, transaction: BatchTransaction, cursor: Any, blames_row: Callable[[Exception], bool]
    ) -> Page[Any] | None:
        """Return a page that passes over the row behind a cursor, if it cannot be read; see `KeyedSource`."""
        keys = await self.list_keys(transaction, cursor, 1)
        if not keys or not await self.is_unreadable(transaction, keys[0], blames_row):
            return None
        return Page(
            cursor=keys[0],
            first_key=keys[0],
            last_key=keys[0],
            row_keys=lambda: keys,
            share=self.share(keys[0]),
            is_last=keys[0] == self.last,
        )

    async def split(self, connection: AsyncConnection, cursor: Any, count: int, size: int) -> list[RangeBounds]:
        """Return ranges with the same number of rows; see `RangedSource`."""
        assert self.last is not None  # noqa: S101
        keys = self.remaining(resumed=cursor is not None)
        values = self.keyset.values("upper", self._upper) | self.behind(cursor)
        is_whole = has_all_rows(self._statement, self.text)
        division = Division(
            self.keyset, keys, values, count, size, by_partition=names_one_table(self._statement), is_whole=is_whole
        )
        return await find_ranges(connection, division, lower=cursor, last=self.last)

    def enter_range(self, last: list[Any], condition: str | None) -> bool:
        """Let the walk return the keys of one range. Return whether the statements have changed."""
        self.last, self._upper = last, self.keyset.decode(last)
        before, self._condition = self._condition, condition
        return before != condition

    def batch(self, *, resumed: bool) -> Select[Any]:
        """Return the select that reads a batch.

        PostgreSQL runs the subquery that chooses the keys once, under the statement's snapshot; the rows are then
        found by them. With ORDER BY and LIMIT directly above FOR UPDATE, a row whose key is moved while we wait for
        its lock would come back with its new key in its old place, and as the last row it would carry the cursor past
        rows that were never read. Here the recheck of its key drops such a row, as the promise allows ("may be done
        or not").
        """
        columns = self.keyset.columns
        chosen = self.remaining(resumed=resumed).limit(SIZE).correlate(None)
        if len(columns) == 1:
            array = func.array(chosen.scalar_subquery(), type_=ARRAY(self.keyset.parts[0].column.type))
            condition = columns[0] == any_(array)
        else:
            condition = tuple_(*columns).in_(chosen)
        return self.locked(self.shape.statement.where(condition))

    def locked(self, read: Select[Any], *, skip_locked: bool = False) -> Select[Any]:
        """Return a select in the order of the walk, which locks its rows unless `lock=False`."""
        read = read.order_by(*self.keyset.order_by())
        if not self._lock:
            return read
        of = _find_locked_tables(find_entity(self._statement), self.keyset)
        return read.with_for_update(of=of, key_share=True, skip_locked=skip_locked)


def _find_locked_tables(entity: Any, keyset: Keyset) -> Any:
    """Return what FOR UPDATE names: the entity, without tables of subclasses, which are outer joined."""
    if isinstance(keyset.parts[0].expression.table, CTE):
        raise UnsupportedStatement(
            "chunks: the rows of a WITH query cannot be locked: walk the table that it reads, with its conditions in "
            "where(), or set lock=False"
        )
    if entity is None:
        return keyset.parts[0].expression.table
    inspected: Any = inspect(entity)
    if len(inspected.with_polymorphic_mappers) < 2:
        return entity
    if inspected.is_aliased_class:
        if isinstance(keyset.parts[0].expression.table, Subquery):
            raise UnsupportedStatement(
                "chunks: an alias of a polymorphic class selects from a subquery, whose rows cannot be locked: walk "
                "the class itself, use with_polymorphic(..., flat=True), or set lock=False"
            )
        return keyset.columns
    return list(dict.fromkeys(mapper.local_table for mapper in inspected.mapper.iterate_to_root()))


def _has_joins(statement: Select[Any]) -> bool:
    froms = statement.get_final_froms()
    return len(froms) > 1 or any(hasattr(item, "onclause") for item in froms)
