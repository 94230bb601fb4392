"""Bulk operations: COPY and unnest, one statement for any number of rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import Column, insert, text
from sqlalchemy.exc import DBAPIError

from worker.batch.diagnose import explain_failure
from worker.batch.records import Group, Target, array_type, fits_unnest
from worker.db.engine import Database
from worker.db.scopes import ScopedSession
from worker.errors import BulkError
from worker.settings import BatchSettings

Rows = Sequence[Any]


class Bulk:
    """Bulk operations in one session, or, without one, each in a transaction of its own.

    `entity` is a mapped class or a `Table`; `rows` are dicts by attribute name, or objects of the entity. All
    of them return the number of rows written, and raise `BulkError`, which names the row.

    Args:
        session: session of the transaction; None for one of its own for each call.
        settings: when COPY is worth its set-up.
        database: where sessions of one's own, and the search for a failing row, come from.
    """

    def __init__(self, session: ScopedSession | None, settings: BatchSettings, database: Database) -> None:
        self._given = session
        self._settings = settings
        self._database = database

    async def insert(self, entity: Any, rows: Rows) -> int:
        """Insert rows: by COPY for many, by SQLAlchemy's insertmanyvalues for few.

        Columns that a row does not name get their default, Python's or the server's. ORM objects are read, not
        attached: they do not learn their new keys.
        """
        target = Target(entity)
        if not rows:
            return 0
        if len(rows) < self._settings.copy_from_rows or target.needs_statement() or not target.is_simple:
            return await self._insert_statement(target, rows)
        async with self._session() as session:
            for group in target.groups(rows, fill="default"):
                await self._copy(session, target, group)
        return len(rows)

    async def update(self, entity: Any, rows: Rows, *, by: Iterable[str] | None = None) -> int:
        """Update rows by key with one `UPDATE ... FROM unnest(...)`.

        Columns with an `onupdate` that a row does not name get it, as in an UPDATE of SQLAlchemy.

        Args:
            entity: what to update.
            rows: each with its key and the columns to set.
            by: names of the key's columns; the primary key by default.

        Returns:
            Rows that were found and changed.
        """
        target = Target(entity)
        key = target.columns(by, list(target.table.primary_key))
        changed = 0
        async with self._session() as session:
            for group in target.groups(rows, fill="onupdate"):
                sets = [column for column in group.columns if column not in key]
                self._need_key(target, group, key)
                computed = target.computed_on_update(group.columns)
                if not sets and not computed:
                    raise BulkError("bulk.update: the rows name no column to set besides their key")
                self._refuse_twice(group, key, "update")
                changed += await self._write(
                    session, target, group, _update_sql(target, group, key, sets, computed), whole_rows=False
                )
        return changed

    async def upsert(
        self,
        entity: Any,
        rows: Rows,
        *,
        by: Iterable[str] | None = None,
        update: Iterable[str] | None = None,
    ) -> int:
        """Insert rows, and update those that are there, with one `INSERT ... ON CONFLICT`.

        On rows that are there, columns with an SQL expression as `onupdate` get it.

        Args:
            entity: what to write.
            rows: each with its key.
            by: names of the columns of a unique index; the primary key by default.
            update: names of the columns to set on rows that are there; all that a row names by default, and
                none (rows that are there stay as they are) for an empty list.
        """
        target = Target(entity)
        key = target.columns(by, list(target.table.primary_key))
        written = 0
        async with self._session() as session:
            for group in target.groups(rows, fill="default"):
                self._need_key(target, group, key)
                self._refuse_twice(group, key, "upsert")
                given = {name for row in target.as_dicts([rows[p] for p in group.positions[:1]]) for name in row}
                named = target.columns(given, [])
                default = [column for column in group.columns if column in named and column not in key]
                sets = target.columns(update, default)
                computed = target.computed_on_update(sets) if sets else {}
                written += await self._write(session, target, group, _upsert_sql(target, group, key, sets, computed))
        return written

    async def delete(self, entity: Any, keys: Sequence[Any], *, by: Iterable[str] | None = None) -> int:
        """Delete rows by key with one `DELETE ... = ANY(keys)`.

        Args:
            entity: what to delete from.
            keys: values of the key; tuples for a key of several columns; dicts or objects of the entity.
            by: names of the key's columns; the primary key by default.

        Returns:
            Rows that were found and deleted.
        """
        target = Target(entity)
        key = target.columns(by, list(target.table.primary_key))
        rows = [_key_row(item, key, target) for item in keys]
        deleted = 0
        async with self._session() as session:
            for group in target.groups(rows, fill=None):
                deleted += await self._write(session, target, group, _delete_sql(target, group), whole_rows=False)
        return deleted

    def _session(self) -> AbstractAsyncContextManager[ScopedSession]:
        return self._database.transaction() if self._given is None else _as_it_is(self._given)

    async def _insert_statement(self, target: Target, rows: Rows) -> int:
        dicts = target.as_dicts(rows)
        target.groups(rows[:1], fill=None)  # names that are not there, before anything is sent
        async with self._session() as session:
            try:
                await session.flush()
                # The class, not its table: rows of joined inheritance go to several tables.
                await session.execute(insert(target.entity), dicts)
            except DBAPIError as error:
                groups = target.groups(rows, fill="default")
                cause = error.orig.__cause__ if error.orig is not None else None
                raise await explain_failure(self._database, target, groups, cause or error) from error
        return len(rows)

    async def _copy(self, session: ScopedSession, target: Target, group: Group) -> None:
        async def copy(raw: asyncpg.Connection) -> None:
            await raw.copy_records_to_table(
                target.table.name,
                schema_name=target.table.schema,
                columns=[column.name for column in group.columns],
                records=group.records,
            )

        await self._send(session, target, group, copy)

    async def _write(
        self, session: ScopedSession, target: Target, group: Group, sql: str, *, whole_rows: bool = True
    ) -> int:
        many = not fits_unnest(group.columns)
        changed = len(group.records)

        async def send(raw: asyncpg.Connection) -> None:
            nonlocal changed
            if many:
                await raw.executemany(sql, group.records)
            else:
                status = await raw.execute(sql, *map(list, zip(*group.records, strict=True)))
                changed = int(status.rsplit(" ", 1)[-1])

        await self._send(session, target, group, send, whole_rows=whole_rows)
        return changed

    async def _send(
        self,
        session: ScopedSession,
        target: Target,
        group: Group,
        send: Callable[[Any], Awaitable[None]],
        *,
        whole_rows: bool = True,
    ) -> None:
        """Hand the driver's connection over, inside of the session's transaction.

        SQLAlchemy's dialect sends BEGIN with its first own statement: a COPY before that would not be in the
        transaction, and would outlive its rollback.
        """
        await session.flush()
        connection = await session.connection()
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None  # noqa: S101
        if not raw.is_in_transaction():
            await connection.execute(text("SELECT 1"))
        try:
            await send(raw)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
                raise
            raise await explain_failure(self._database, target, [group], error, whole_rows=whole_rows) from error

    def _need_key(self, target: Target, group: Group, key: list[Column[Any]]) -> None:
        missing = [column.name for column in key if column not in group.columns]
        if missing:
            position = group.positions[0]
            raise BulkError(
                f"row {position}: no value for {', '.join(missing)}, the key of {target.name}",
                row_index=position,
            )

    def _refuse_twice(self, group: Group, key: list[Column[Any]], verb: str) -> None:
        places = [group.columns.index(column) for column in key]
        seen: dict[Any, int] = {}
        for record, position in zip(group.records, group.positions, strict=True):
            value = tuple(record[place] for place in places)
            if value in seen:
                raise BulkError(
                    f"bulk.{verb}: rows {seen[value]} and {position} have the same key {value}; which of them is "
                    f"meant cannot be told",
                    row_index=position,
                )
            seen[value] = position


@asynccontextmanager
async def _as_it_is(session: ScopedSession) -> AsyncIterator[ScopedSession]:
    yield session


def _source(target: Target, group: Group) -> str:
    """Return `unnest($1::t[], ...) AS given (a, b)`, or VALUES for a row at a time."""
    names = ", ".join(target.quoted(group.columns))
    if fits_unnest(group.columns):
        arrays = ", ".join(f"${place}::{array_type(column)}" for place, column in enumerate(group.columns, start=1))
        return f"unnest({arrays}) AS given ({names})"
    values = ", ".join(f"${place}::{array_type(column)[:-2]}" for place, column in enumerate(group.columns, 1))
    return f"(VALUES ({values})) AS given ({names})"


def _changes(target: Target, sets: list[Column[Any]], source: str, computed: dict[Column[Any], str]) -> str:
    named = [f"{name} = {source}.{name}" for name in target.quoted(sets)]
    made = [f"{name} = {sql}" for name, sql in zip(target.quoted(computed), computed.values(), strict=True)]
    return ", ".join(named + made)


def _update_sql(
    target: Target, group: Group, key: list[Column[Any]], sets: list[Column[Any]], computed: dict[Column[Any], str]
) -> str:
    changes = _changes(target, sets, "given", computed)
    same = " AND ".join(f"target.{name} = given.{name}" for name in target.quoted(key))
    return f"UPDATE {target.name} AS target SET {changes} FROM {_source(target, group)} WHERE {same}"  # noqa: S608


def _upsert_sql(
    target: Target, group: Group, key: list[Column[Any]], sets: list[Column[Any]], computed: dict[Column[Any], str]
) -> str:
    names = ", ".join(target.quoted(group.columns))
    conflict = ", ".join(target.quoted(key))
    changes = _changes(target, sets, "excluded", computed)
    action = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
    return (
        f"INSERT INTO {target.name} ({names}) SELECT {names} FROM {_source(target, group)} "  # noqa: S608
        f"ON CONFLICT ({conflict}) {action}"
    )


def _delete_sql(target: Target, group: Group) -> str:
    names = target.quoted(group.columns)
    if len(names) == 1:
        return f"DELETE FROM {target.name} WHERE {names[0]} = ANY($1::{array_type(group.columns[0])})"  # noqa: S608
    same = " AND ".join(f"target.{name} = given.{name}" for name in names)
    return f"DELETE FROM {target.name} AS target USING {_source(target, group)} WHERE {same}"  # noqa: S608


def _key_row(item: Any, key: list[Column[Any]], target: Target) -> dict[str, Any]:
    names = [column.key for column in key]
    if isinstance(item, dict):
        return {name: item[name] for name in names}
    if target.mapper is not None and isinstance(item, target.mapper.class_):
        values = target.as_dicts([item])[0]
        return {
            target.mapper.get_property_by_column(column).key: values[target.mapper.get_property_by_column(column).key]
            for column in key
        }
    values_of = item if isinstance(item, tuple) else (item,)
    return dict(zip(names, values_of, strict=True))
