"""`Bulk`: the bulk operations that a job calls, in the transaction of its batch or in one of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Column

from worker.batch.bulk import eligibility
from worker.batch.bulk.rows import Group, Rows, count_rows, exclude, fill_defaults, group_rows, to_dicts
from worker.batch.bulk.target import BulkTarget, make_target
from worker.batch.bulk.writer import BulkWriter, Transaction
from worker.batch.transaction import BatchTransaction, bulk_transaction
from worker.db.engine import Database
from worker.errors import BulkError
from worker.settings import BatchSettings

Columns = list[Column[Any]]


class Bulk:
    """Bulk operations in one transaction, or each in a transaction of its own.

    `entity` is a mapped class or a `Table`. `rows` are dicts by attribute name, or objects of the entity; or one dict
    of columns, `{"id": [1, 2], "score": [7, 9]}`, which avoids a dict for each row. Every operation returns the number
    of rows that it has written. If a value or a constraint causes a failure, it raises `BulkError`, which names the
    row. Other errors of the database are raised unchanged.

    If a fast statement could write a column type or a kind of table differently from SQLAlchemy, SQLAlchemy's own
    statement writes each row. Examples are types with a bind expression and tables with rules.

    Args:
        transaction: the transaction of a batch; None for one of its own for each operation.
        settings: the number of rows from which COPY is used, among others.
        database: provides connections for separate transactions and for the search for a failing row.
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
            writer = await BulkWriter.open(transaction, target, self._database)
            groups = group_rows(target, rows, in_order=True) if target.is_simple else []
            many = count_rows(rows) >= self._settings.copy_from_rows
            # With several groups, the server would number the rows in another order.
            if many and len(groups) == 1 and await writer.insert_fast(groups[0]):
                return count_rows(rows)
            if target.mapper is None:  # Core takes the columns of the first row for all of them
                for group in groups:
                    await writer.insert_dicts(group.dicts(target.names), group.positions, group)
            else:
                dicts = [row for group in groups for row in group.dicts(target.names)] or _joined_dicts(target, rows)
                await writer.insert_dicts(dicts, range(len(dicts)), groups[0] if len(groups) == 1 else None)
            return count_rows(rows)

    async def update(self, entity: Any, rows: Rows, *, by: Iterable[str] | None = None) -> int:
        """Update rows by key, with one `UPDATE ... FROM unnest(...)` if it writes the same values as SQLAlchemy.

        A column with an `onupdate` gets that value if the row does not name the column, as in an UPDATE of SQLAlchemy.

        Args:
            entity: the mapped class or table to update.
            rows: the rows, each with its key and the columns to set.
            by: names of the key's columns; the primary key by default.

        Returns:
            The number of rows that were found and changed.

        Raises:
            StaleDataError: The class has a version counter or several tables, so that the ORM itself updates its rows,
                and a row does not exist or has another version than the given one.
        """
        target = make_target(entity)
        key = target.columns(by, list(target.table.primary_key))
        if target.version is not None or (not target.is_simple and by is None):
            return await self._update_mapped(target, _listed(rows), key)
        changed = 0
        async with self._open() as transaction:
            writer = await BulkWriter.open(transaction, target, self._database)
            for group in group_rows(target, _listed(rows)):
                _ensure_key(target, group, key)
                _ensure_changes(target, group, key)
                _ensure_unique(group, key, "update")
                changed += await writer.update(group, key)
        return changed

    async def upsert(
        self,
        entity: Any,
        rows: Rows,
        *,
        by: Iterable[str] | None = None,
        update: Iterable[str] | None = None,
    ) -> int:
        """Insert rows and update existing rows, with `INSERT ... ON CONFLICT`.

        In existing rows, columns with an SQL expression as `onupdate` get its value.

        Args:
            entity: the mapped class or table to write to.
            rows: the rows, each with its key.
            by: names of the columns of a unique index; the primary key by default.
            update: names of the columns to set in existing rows. By default all columns that a row names; an empty list
                leaves existing rows unchanged.
        """
        target = _whole(entity, "upsert")
        key = target.columns(by, list(target.table.primary_key))
        written = 0
        async with self._open() as transaction:
            writer = await BulkWriter.open(transaction, target, self._database)
            for given in group_rows(target, _listed(rows)):
                sets = target.columns(update, exclude(given.columns, key))
                with_context = eligibility.needs_context(target, "default", given.columns)
                group = given if with_context else fill_defaults(target, given, "default")
                _ensure_key(target, group, key)
                _ensure_unique(group, key, "upsert")
                written += await writer.upsert(group, key, sets)
        return written

    async def delete(self, entity: Any, keys: Sequence[Any], *, by: Iterable[str] | None = None) -> int:
        """Delete rows by key, with one `DELETE ... = ANY(keys)` if it deletes the same rows as SQLAlchemy.

        Args:
            entity: the mapped class or table to delete from.
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
            writer = await BulkWriter.open(transaction, target, self._database)
            for group in group_rows(target, rows):
                deleted += await writer.delete(group, key)
        return deleted

    async def _update_mapped(self, target: BulkTarget, rows: Rows, key: Columns) -> int:
        """Update rows that only the ORM can update: of several tables, or with a version counter."""
        dicts = _joined_dicts(target, rows)
        if set(key) != set(target.table.primary_key):
            raise BulkError(
                f"bulk.update: {target.entity.__name__} has a version counter, which the ORM checks by primary key "
                f"alone: pass rows with their primary key instead of by="
            )
        mapper: Any = target.mapper
        needed = [
            mapper.get_property_by_column(column).key
            for column in (*mapper.primary_key, target.version)
            if column is not None
        ]
        for position, row in enumerate(dicts):
            if missing := [name for name in needed if name not in row]:
                raise BulkError(
                    f"row {position}: no value for {', '.join(missing)}, by which the ORM finds a row of {target.name}",
                    row_index=position,
                )
        if not dicts:
            return 0
        async with self._open() as transaction:
            writer = await BulkWriter.open(transaction, target, self._database)
            return await writer.update_dicts(dicts)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Transaction]:
        """Yield the given transaction, or open one that ends with the block."""
        if self._given is not None:
            yield self._given
        else:
            async with bulk_transaction(self._database) as transaction:
                yield transaction


def _whole(entity: Any, verb: str) -> BulkTarget:
    target = make_target(entity)
    if not target.is_simple:
        raise BulkError(
            f"bulk.{verb}: a row of {entity.__name__} is rows of several tables (joined inheritance), and this would "
            f"write {target.name} alone: name the tables one by one, or use batch.session"
        )
    return target


def _joined_dicts(target: BulkTarget, rows: Rows) -> list[dict[str, Any]]:
    """Return rows of several tables as dicts. Their names are checked, because the ORM ignores an unknown name."""
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
    given = frozenset(group.columns)
    missing = [column.name for column in key if column not in given]
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
                f"bulk.{verb}: rows {seen[value]} and {position} have the same key {value!r}: "
                f"pass only one row for each key",
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
