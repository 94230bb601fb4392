"""Bulk operations: COPY and unnest, one statement for any number of rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import Column, insert
from sqlalchemy.exc import DBAPIError

from worker.batch.bulk.diagnose import explain_failure
from worker.batch.bulk.rows import BulkTarget, Group, Rows, count_rows, fits_unnest, make_target
from worker.batch.bulk.statements import delete_statement, update_statement, upsert_statement
from worker.batch.transaction import DriverWriter, SessionWriter, Writer, driver_transaction
from worker.db.engine import Database
from worker.errors import BulkError
from worker.settings import BatchSettings


class Bulk:
    """Bulk operations in one transaction, or, without one, each in one of its own.

    `entity` is a mapped class or a `Table`; `rows` are dicts by attribute name, or objects of the entity; or one dict
    of columns, `{"id": [1, 2], "score": [7, 9]}`, which saves the making of a dict for each row. All of them return
    the number of rows written, and raise `BulkError`, which names the row.

    Args:
        writer: the transaction; None for one of its own for each call.
        settings: when COPY is worth its set-up.
        database: where sessions of one's own, and the search for a failing row, come from.
    """

    def __init__(self, writer: Writer | None, settings: BatchSettings, database: Database) -> None:
        self._given = writer
        self._settings = settings
        self._database = database

    async def insert(self, entity: Any, rows: Rows) -> int:
        """Insert rows: by COPY for many, by SQLAlchemy's insertmanyvalues for few.

        Columns that a row does not name get their default, Python's or the server's. ORM objects are read, not
        attached: they do not learn their new keys.
        """
        target = make_target(entity)
        rows = _listed(rows)
        if not count_rows(rows):
            return 0
        few = count_rows(rows) < self._settings.copy_from_rows and not target.casts_cut
        if few or target.needs_statement() or not target.is_simple:
            return await self._insert_statement(target, rows)
        async with self._writer() as writer:
            for group in target.groups(rows, fill="default"):
                await self._copy(writer, target, group)
        return count_rows(rows)

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
        target = make_target(entity)
        key = target.columns(by, list(target.table.primary_key))
        changed = 0
        async with self._writer() as writer:
            for group in target.groups(_listed(rows), fill="onupdate"):
                sets = [column for column in group.columns if column not in key]
                self._need_key(target, group, key)
                computed = target.computed_on_update(group.columns)
                if not sets and not computed:
                    raise BulkError("bulk.update: the rows name no column to set besides their key")
                self._refuse_twice(group, key, "update")
                sql = update_statement(target, group, key, sets, computed)
                changed += await self._write(writer, target, group, sql, whole_rows=False)
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
        target = self._whole(entity, "upsert")
        key = target.columns(by, list(target.table.primary_key))
        written = 0
        async with self._writer() as writer:
            for group in target.groups(_listed(rows), fill="default"):
                self._need_key(target, group, key)
                self._refuse_twice(group, key, "upsert")
                default = [column for column in group.columns if column in group.named and column not in key]
                sets = target.columns(update, default)
                computed = target.computed_on_update(sets) if sets else {}
                sql = upsert_statement(target, group, key, sets, computed)
                written += await self._write(writer, target, group, sql)
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
        target = self._whole(entity, "delete")
        key = target.columns(by, list(target.table.primary_key))
        rows = [_key_row(item, key, target, place) for place, item in enumerate(keys)]
        deleted = 0
        async with self._writer() as writer:
            for group in target.groups(rows, fill=None):
                sql = delete_statement(target, group)
                deleted += await self._write(writer, target, group, sql, whole_rows=False)
        return deleted

    @asynccontextmanager
    async def _writer(self, *, with_session: bool = False) -> AsyncIterator[Writer]:
        """Open the transaction that is written in: the given one, or one of its own, of the driver alone unless a
        session is needed."""
        if self._given is not None:
            yield self._given
        elif with_session:
            async with self._database.transaction() as session:
                yield SessionWriter(session)
        else:
            async with driver_transaction(self._database) as raw:
                yield DriverWriter(raw)

    def _whole(self, entity: Any, verb: str) -> BulkTarget:
        target = make_target(entity)
        if not target.is_simple:
            raise BulkError(
                f"bulk.{verb}: a row of {entity.__name__} is rows of several tables (joined inheritance), and this "
                f"would write {target.name} alone: name the tables one by one, or use batch.session"
            )
        return target

    async def _insert_statement(self, target: BulkTarget, rows: Rows) -> int:
        dicts = target.as_dicts(rows)
        target.groups(dicts[:1], fill=None)  # names that are not there, before anything is sent
        async with self._writer(with_session=True) as writer:
            try:
                await writer.session.flush()
                # The class, not its table: rows of joined inheritance go to several tables.
                await writer.session.execute(insert(target.entity), dicts)
            except DBAPIError as error:
                groups = target.groups(rows, fill="default")
                cause = error.orig.__cause__ if error.orig is not None else None
                raise await explain_failure(self._database, target, groups, cause or error) from error
        return len(dicts)

    async def _copy(self, writer: Writer, target: BulkTarget, group: Group) -> None:
        async def copy(raw: asyncpg.Connection) -> None:
            await raw.copy_records_to_table(
                target.table.name,
                schema_name=target.table.schema,
                columns=[column.name for column in group.columns],
                records=zip(*group.arrays, strict=True),
            )

        await self._send(writer, target, group, copy)

    async def _write(
        self, writer: Writer, target: BulkTarget, group: Group, sql: str, *, whole_rows: bool = True
    ) -> int:
        changed = 0

        async def send(raw: asyncpg.Connection) -> None:
            nonlocal changed
            if fits_unnest(group.columns):
                status = await raw.execute(sql, *group.arrays)
                changed = int(status.rsplit(" ", 1)[-1])
            else:
                changed = len(await raw.fetchmany(f"{sql} RETURNING 1", group.records))

        await self._send(writer, target, group, send, whole_rows=whole_rows)
        return changed

    async def _send(
        self,
        writer: Writer,
        target: BulkTarget,
        group: Group,
        send: Callable[[Any], Awaitable[None]],
        *,
        whole_rows: bool = True,
    ) -> None:
        """Hand the driver's connection over, inside of the transaction, and explain what it refuses."""
        raw = await writer.driver()
        try:
            await send(raw)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
                raise
            raise await explain_failure(self._database, target, [group], error, whole_rows=whole_rows) from error

    def _need_key(self, target: BulkTarget, group: Group, key: list[Column[Any]]) -> None:
        missing = [column.name for column in key if column not in group.columns]
        if missing:
            position = group.positions[0]
            raise BulkError(
                f"row {position}: no value for {', '.join(missing)}, the key of {target.name}",
                row_index=position,
            )

    def _refuse_twice(self, group: Group, key: list[Column[Any]], verb: str) -> None:
        keys = [group.arrays[group.columns.index(column)] for column in key]
        values = keys[0] if len(keys) == 1 else list(zip(*keys, strict=True))
        if len(set(values)) == len(values):
            return
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


def _key_row(item: Any, key: list[Column[Any]], target: BulkTarget, place: int) -> dict[str, Any]:
    if isinstance(item, dict) or (target.mapper is not None and isinstance(item, target.mapper.class_)):
        given = target.as_dicts([item])[0]
        by_column = {target.columns([name], [])[0]: value for name, value in given.items()}
        missing = [column.name for column in key if column not in by_column]
        if missing:
            raise BulkError(
                f"row {place}: no value for {', '.join(missing)}, the key of {target.name}", row_index=place
            )
        return {column.key: by_column[column] for column in key}
    values_of = item if isinstance(item, tuple) else (item,)
    return dict(zip((column.key for column in key), values_of, strict=True))
