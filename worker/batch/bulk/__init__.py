"""Bulk operations: any number of rows by COPY, or by one statement with an array for each column."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Column, insert

from worker.batch.bulk import eligibility
from worker.batch.bulk.diagnose import STATEMENT_ERRORS, driver_error, find_first_failing, find_row, make_error
from worker.batch.bulk.eligibility import TableFacts
from worker.batch.bulk.row_by_row import RowByRow, RowsAtTheEnds
from worker.batch.bulk.rows import Group, Rows, bind_values, count_rows, fill_defaults, group_rows, to_dicts
from worker.batch.bulk.statements import delete_statement, insert_statement, update_statement, upsert_statement
from worker.batch.bulk.target import BulkTarget, make_target
from worker.batch.transaction import BatchTransaction, BulkTransaction, bulk_transaction
from worker.cancellation import run_to_completion
from worker.db.driver import connection_info, execution_options
from worker.db.engine import Database
from worker.db.errors import ErrorKind, blames_a_row, classify
from worker.db.sessions import roll_back
from worker.errors import BulkError
from worker.settings import BatchSettings

Columns = list[Column[Any]]
Transaction = BatchTransaction | BulkTransaction


class Bulk:
    """Bulk operations in one transaction, or each in a transaction of its own.

    `entity` is a mapped class or a `Table`. `rows` are dicts by attribute name, or objects of the entity; or one dict
    of columns, `{"id": [1, 2], "score": [7, 9]}`, which avoids a dict for each row. Every operation returns the number
    of rows that it has written, and raises `BulkError`, which names the row, if a value or a constraint is the reason
    of a failure. Other errors of the database are raised as they are.

    Columns whose type, or tables whose kind, a fast statement could treat in another way than SQLAlchemy does are
    written by SQLAlchemy's own statement for each row: types with a bind expression, tables with rules, and others.

    Args:
        transaction: the transaction of a batch; None for one of its own for each operation.
        settings: from how many rows on COPY is used.
        database: where transactions of its own, and the search for a failing row, get their connections.
    """

    def __init__(self, transaction: BatchTransaction | None, settings: BatchSettings, database: Database) -> None:
        self._given = transaction
        self._settings = settings
        self._database = database

    async def insert(self, entity: Any, rows: Rows) -> int:
        """Insert rows: few with SQLAlchemy's insertmanyvalues, many with COPY.

        Columns that a row does not name get their default, Python's or the server's. ORM objects are read, not attached
        to a session: they do not get their new keys.
        """
        target = make_target(entity)
        rows = _listed(rows)
        if not count_rows(rows):
            return 0
        async with self._open() as transaction:
            facts = await self._facts(transaction, target)
            groups = group_rows(target, rows, in_order=True) if target.is_simple else []
            many = count_rows(rows) >= self._settings.copy_from_rows
            if many and len(groups) == 1 and await self._insert_fast(transaction, target, groups[0], facts):
                return count_rows(rows)
            await self._insert_rows(transaction, target, rows, groups, facts)
            return count_rows(rows)

    async def update(self, entity: Any, rows: Rows, *, by: Iterable[str] | None = None) -> int:
        """Update rows by key, with one `UPDATE ... FROM unnest(...)` if that writes what SQLAlchemy would write.

        Columns with an `onupdate` that a row does not name get it, as in an UPDATE of SQLAlchemy.

        Args:
            entity: what to update.
            rows: each with its key and the columns to set.
            by: names of the key's columns; the primary key by default.

        Returns:
            The number of rows that were found and changed.
        """
        target = make_target(entity)
        key = target.columns(by, list(target.table.primary_key))
        changed = 0
        async with self._open() as transaction:
            facts = await self._facts(transaction, target)
            for group in group_rows(target, _listed(rows)):
                _ensure_key(target, group, key)
                _ensure_changes(target, group, key)
                _ensure_unique(group, key, "update")
                plain, at_ends = RowsAtTheEnds.split(group, key)
                changed += await self._update_group(transaction, target, plain, key, facts)
                statement = RowsAtTheEnds.update(target, group.columns, key)
                changed += await self._write_rows(transaction, target, at_ends, statement)
        return changed

    async def upsert(
        self,
        entity: Any,
        rows: Rows,
        *,
        by: Iterable[str] | None = None,
        update: Iterable[str] | None = None,
    ) -> int:
        """Insert rows, and update those that exist, with `INSERT ... ON CONFLICT`.

        In rows that exist, columns with an SQL expression as `onupdate` get it.

        Args:
            entity: what to write.
            rows: each with its key.
            by: names of the columns of a unique index; the primary key by default.
            update: names of the columns to set in rows that exist. By default all that a row names; an empty list
                leaves such rows as they are.
        """
        target = _whole(entity, "upsert")
        key = target.columns(by, list(target.table.primary_key))
        written = 0
        async with self._open() as transaction:
            facts = await self._facts(transaction, target)
            for given in group_rows(target, _listed(rows)):
                _ensure_key(target, fill_defaults(target, given, "default"), key)
                default = [column for column in given.columns if column not in key]
                sets = target.columns(update, default)
                written += await self._upsert_group(transaction, target, given, key, sets, facts)
        return written

    async def delete(self, entity: Any, keys: Sequence[Any], *, by: Iterable[str] | None = None) -> int:
        """Delete rows by key, with one `DELETE ... = ANY(keys)` if that deletes what SQLAlchemy would delete.

        Args:
            entity: what to delete from.
            keys: values of the key; tuples for a key of several columns; dicts or objects of the entity.
            by: names of the key's columns; the primary key by default.

        Returns:
            The number of rows that were found and deleted.
        """
        target = _whole(entity, "delete")
        key = target.columns(by, list(target.table.primary_key))
        rows = [_key_row(item, key, target, place) for place, item in enumerate(keys)]
        deleted = 0
        async with self._open() as transaction:
            facts = await self._facts(transaction, target)
            for group in group_rows(target, rows):
                plain, at_ends = RowsAtTheEnds.split(group, key)
                casts, arrays = _arrays(plain, facts)
                if casts and arrays:
                    sql = delete_statement(target, casts)
                    deleted += await self._send(transaction, target, plain, sql, arrays, whole_rows=False)
                else:
                    deleted += await self._write_rows(transaction, target, plain, RowByRow.delete(target, key))
                statement = RowsAtTheEnds.delete(target, key)
                deleted += await self._write_rows(transaction, target, at_ends, statement)
        return deleted

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Transaction]:
        """Return the transaction that was given, or open one that ends with the block."""
        if self._given is not None:
            yield self._given
        else:
            async with bulk_transaction(self._database) as transaction:
                yield transaction

    async def _facts(self, transaction: Transaction, target: BulkTarget) -> TableFacts | None:
        """Return what decides on the fast paths; None if none of them may be taken."""
        if execution_options(transaction.connection).get("schema_translate_map"):
            return None
        known = connection_info(transaction.connection)
        return await eligibility.read_facts(await transaction.driver(), known, target)

    async def _insert_fast(
        self, transaction: Transaction, target: BulkTarget, given: Group, facts: TableFacts | None
    ) -> bool:
        """Insert by COPY, or from arrays if COPY is not possible. Returns False, and writes nothing, otherwise."""
        if facts is None or not facts.is_table or eligibility.needs_context(target, "default", given.columns):
            return False
        group = fill_defaults(target, given, "default")
        if eligibility.none_is_left_out(target, group, facts):
            return False
        if eligibility.are_copyable(group.columns, facts):
            await self._copy(transaction, target, group)
            return True
        casts, arrays = _arrays(group, facts)
        if not casts or any(column.name in facts.generated for column in casts):
            return False
        await self._send(transaction, target, group, insert_statement(target, casts), arrays, whole_rows=True)
        return True

    async def _insert_rows(
        self, transaction: Transaction, target: BulkTarget, rows: Rows, groups: list[Group], facts: TableFacts | None
    ) -> None:
        """Insert with SQLAlchemy's own statement. The ORM parts rows that name different columns; Core does not."""
        if target.mapper is None:
            for group in groups:
                await self._insert_dicts(
                    transaction, target, group.dicts(target.names), group.positions, [group], facts
                )
        else:
            dicts = [row for group in groups for row in group.dicts(target.names)] or _joined_dicts(target, rows)
            await self._insert_dicts(transaction, target, dicts, range(len(dicts)), groups, facts)

    async def _insert_dicts(
        self,
        transaction: Transaction,
        target: BulkTarget,
        dicts: list[dict[str, Any]],
        positions: Sequence[int],
        groups: list[Group],
        facts: TableFacts | None,
    ) -> None:
        session, statement = transaction.session, insert(target.entity)

        async def run(count: int) -> int:
            await session.execute(statement, dicts[:count])
            return count

        if facts is not None and len(groups) == 1 and eligibility.are_copyable(groups[0].columns, facts):
            # The search for a failing row needs no savepoint: an empty copy of the table fails on the same row.
            await transaction.driver()
            with_defaults = fill_defaults(target, groups[0], "default")
            await self._explained(transaction, target, with_defaults, lambda: run(len(dicts)), whole_rows=True)
        else:
            await self._in_savepoint(transaction, target, positions, run)

    async def _update_group(
        self, transaction: Transaction, target: BulkTarget, given: Group, key: Columns, facts: TableFacts | None
    ) -> int:
        expressions = eligibility.update_expressions(target, given.columns)
        takes_arrays = (
            facts is not None
            and facts.is_table
            and expressions is not None
            and not eligibility.needs_context(target, "onupdate", given.columns)
            and eligibility.are_keys(key, facts)
        )
        group = fill_defaults(target, given, "onupdate") if takes_arrays else given
        casts, arrays = _arrays(group, facts) if takes_arrays else ({}, [])
        if not casts:
            return await self._write_rows(transaction, target, given, RowByRow.update(target, given.columns, key))
        sets = [column for column in group.columns if column not in key]
        sql = update_statement(target, casts, key, sets, expressions or {})
        return await self._send(transaction, target, group, sql, arrays, whole_rows=False)

    async def _upsert_group(
        self,
        transaction: Transaction,
        target: BulkTarget,
        given: Group,
        key: Columns,
        sets: Columns,
        facts: TableFacts | None,
    ) -> int:
        expressions = eligibility.update_expressions(target, sets) if sets else {}
        with_context = eligibility.needs_context(target, "default", given.columns)
        group = given if with_context else fill_defaults(target, given, "default")
        takes_arrays = (
            facts is not None
            and facts.is_table
            and expressions is not None
            and not with_context
            and eligibility.are_keys(key, facts)
            and not any(column.name in facts.generated for column in group.columns)
        )
        _ensure_unique(group, key, "upsert")
        casts, arrays = _arrays(group, facts) if takes_arrays else ({}, [])
        if not casts:
            statement = RowByRow.upsert(target, group.columns, key, sets)
            return await self._write_rows(transaction, target, group, statement)
        sql = upsert_statement(target, casts, key, sets, expressions or {})
        return await self._send(transaction, target, group, sql, arrays, whole_rows=True)

    async def _copy(self, transaction: Transaction, target: BulkTarget, group: Group) -> None:
        arrays = [
            bind_values(column, values, group.positions)
            for column, values in zip(group.columns, group.values, strict=True)
        ]
        raw = await transaction.driver()

        async def copy() -> int:
            await raw.copy_records_to_table(
                target.table.name,
                schema_name=target.table.schema,
                columns=[column.name for column in group.columns],
                records=zip(*arrays, strict=True),
            )
            return len(group)

        await self._explained(transaction, target, group, copy, whole_rows=True)

    async def _send(
        self,
        transaction: Transaction,
        target: BulkTarget,
        group: Group,
        sql: str,
        arrays: list[list[Any]],
        *,
        whole_rows: bool,
    ) -> int:
        """Execute one statement with an array for each column. Returns the number of rows that it has written."""
        if not len(group):
            return 0
        raw = await transaction.driver()

        async def execute() -> int:
            status: str = await raw.execute(sql, *arrays)
            return int(status.rsplit(" ", 1)[-1])

        return await self._explained(transaction, target, group, execute, whole_rows=whole_rows)

    async def _write_rows(self, transaction: Transaction, target: BulkTarget, group: Group, statement: RowByRow) -> int:
        if not len(group):
            return 0
        raw = await transaction.driver()

        async def run(count: int) -> int:
            return await statement.execute(transaction.connection, raw, group.first(count))

        return await self._in_savepoint(transaction, target, group.positions, run)

    async def _explained(
        self,
        transaction: Transaction,
        target: BulkTarget,
        group: Group,
        run: Callable[[], Awaitable[int]],
        *,
        whole_rows: bool,
    ) -> int:
        """Run a statement for a whole group; raise `BulkError` for the row on which it fails, if a row is to blame."""
        try:
            return await run()
        except STATEMENT_ERRORS as error:
            if classify(error) is ErrorKind.TRANSIENT:
                eligibility.forget_facts(connection_info(transaction.connection))  # the table may have been altered
            if isinstance(error, BulkError) or not blames_a_row(error):
                raise
            position = await find_row(self._database, target, group, driver_error(error), whole_rows=whole_rows)
            raise make_error(target, error, position) from error

    async def _in_savepoint(
        self,
        transaction: Transaction,
        target: BulkTarget,
        positions: Sequence[int],
        run: Callable[[int], Awaitable[int]],
    ) -> int:
        """Run SQLAlchemy's own statements in a savepoint, and find the row on which they fail.

        Args:
            transaction: the transaction that they are in.
            target: the table.
            positions: the position of each row in the list that the caller gave.
            run: executes the statements for the first rows, as many as it is told.
        """
        raw = await transaction.driver()

        async def attempt(count: int, *, keep: bool) -> int:
            savepoint = raw.transaction()
            await savepoint.start()
            try:
                written = await run(count)
            except BaseException:
                await run_to_completion(roll_back(savepoint.rollback()))
                raise
            await (savepoint.commit() if keep else savepoint.rollback())
            return written

        async def fails(count: int) -> bool:
            try:
                await attempt(count, keep=False)
            except STATEMENT_ERRORS as error:
                return blames_a_row(error)
            return False

        try:
            return await attempt(len(positions), keep=True)
        except STATEMENT_ERRORS as error:
            if not blames_a_row(error):
                raise
            place = await find_first_failing(fails, len(positions))
            raise make_error(target, error, None if place is None else positions[place]) from error


def _arrays(group: Group, facts: TableFacts | None) -> tuple[dict[Column[Any], str], list[list[Any]]]:
    """Return the columns with the casts of their arrays, and the arrays; nothing if a column cannot be sent so."""
    if facts is None or not facts.is_table:
        return {}, []
    casts = {column: eligibility.array_cast(column, facts) for column in group.columns}
    known = {column: cast for column, cast in casts.items() if cast is not None}
    if len(known) != len(casts):
        return {}, []
    arrays = [
        bind_values(column, values, group.positions) for column, values in zip(group.columns, group.values, strict=True)
    ]
    return (known, arrays) if eligibility.are_flat(arrays) else ({}, [])


def _whole(entity: Any, verb: str) -> BulkTarget:
    target = make_target(entity)
    if not target.is_simple:
        raise BulkError(
            f"bulk.{verb}: a row of {entity.__name__} is rows of several tables (joined inheritance), and this would "
            f"write {target.name} alone: name the tables one by one, or use batch.session"
        )
    return target


def _joined_dicts(target: BulkTarget, rows: Rows) -> list[dict[str, Any]]:
    """Return rows of several tables as dicts, whose names are checked: the ORM would ignore an unknown one."""
    dicts = to_dicts(target, rows)
    known = set(target.mapper.column_attrs.keys()) if target.mapper is not None else set()
    for index, row in enumerate(dicts):
        for name in row:
            if name not in known:
                raise BulkError(
                    f"row {index}: {target.entity.__name__} has no column {name!r}; it has {', '.join(sorted(known))}",
                    row_index=index,
                )
    return dicts


def _ensure_key(target: BulkTarget, group: Group, key: Columns) -> None:
    missing = [column.name for column in key if column not in group.columns]
    if missing:
        position = group.positions[0]
        raise BulkError(
            f"row {position}: no value for {', '.join(missing)}, the key of {target.name}", row_index=position
        )


def _ensure_changes(target: BulkTarget, group: Group, key: Columns) -> None:
    if set(group.columns) <= set(key) and not any(column.onupdate is not None for column in target.table.columns):
        raise BulkError("bulk.update: the rows name no column to set besides their key")


def _ensure_unique(group: Group, key: Columns, verb: str) -> None:
    keys = [group.of(column) for column in key]
    values = keys[0] if len(keys) == 1 else list(zip(*keys, strict=True))
    try:
        if len(set(values)) == len(values):
            return
    except TypeError:
        return  # values that cannot be compared are written row by row
    seen: dict[Any, int] = {}
    for value, position in zip(values, group.positions, strict=True):
        if value in seen:
            raise BulkError(
                f"bulk.{verb}: rows {seen[value]} and {position} have the same key {value!r}; which of them is "
                f"meant cannot be told",
                row_index=position,
            )
        seen[value] = position


def _listed(rows: Any) -> Rows:
    return rows if isinstance(rows, Sequence | Mapping) else list(rows)


def _key_row(item: Any, key: Columns, target: BulkTarget, place: int) -> dict[str, Any]:
    if isinstance(item, dict) or (target.mapper is not None and isinstance(item, target.mapper.class_)):
        given = to_dicts(target, [item])[0]
        by_column = {target.column(name, place): value for name, value in given.items()}
        missing = [column.name for column in key if column not in by_column]
        if missing:
            raise BulkError(
                f"row {place}: no value for {', '.join(missing)}, the key of {target.name}", row_index=place
            )
        return {target.names[column]: by_column[column] for column in key}
    values = item if isinstance(item, tuple) else (item,)
    return dict(zip((target.names[column] for column in key), values, strict=True))
