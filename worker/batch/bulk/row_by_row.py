"""SQLAlchemy's own statement for each row: the reference for the fast paths, and their replacement.

The statements are SQLAlchemy's, so bind expressions, types of the application, defaults and translated schemas behave
as in a session. The driver pipelines them unless SQLAlchemy has to make values as it executes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Delete,
    Insert,
    Integer,
    Select,
    String,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    cast,
    delete,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.bulk.eligibility import rendered_cast
from worker.batch.bulk.rows import Group
from worker.batch.bulk.target import BulkTarget
from worker.batch.compiled import CompiledStatement
from worker.db.calendar_ends import is_at_end
from worker.db.driver import execution_options
from worker.db.statement_internals import rewrites_statements
from worker.errors import BulkError

Columns = Sequence[Column[Any]]

_WRITTEN: ColumnElement[Any] = literal_column("1")
#: The last and the first value of Python's types, as the server writes them.
_ENDS = {
    "DATE": ("9999-12-31", "0001-01-01"),
    "TIMESTAMP WITHOUT TIME ZONE": ("9999-12-31 23:59:59.999999", "0001-01-01 00:00:00"),
    "TIMESTAMP WITH TIME ZONE": ("9999-12-31 23:59:59.999999+00", "0001-01-01 00:00:00+00"),
}


def _may_hold_dates(column: Column[Any]) -> bool:
    kind = type(column.type)  # a type of the application may take dates, whatever it derives from
    return not (issubclass(kind, Integer | String | Uuid) and kind.__module__.startswith("sqlalchemy."))


class RowByRow:
    """One statement, executed for each row of a group.

    Args:
        statement: the statement, which returns one row for each row that it writes.
        columns: the columns whose values its parameters are, in order.
        in_context: the same statement without values, for columns whose default or `onupdate` is a function that takes
            the context of the execution: it finds the values of `set_columns` by their keys. None for `statement`.
        set_columns: the columns that `in_context` sets.
    """

    def __init__(
        self,
        statement: Insert | Update | Delete | Select[Any],
        columns: Columns,
        *,
        in_context: Insert | Update | None = None,
        set_columns: Columns = (),
    ) -> None:
        self._statement = statement
        self._columns = columns
        self._in_context = statement if in_context is None else in_context
        self._set_columns = frozenset(set_columns)

    @classmethod
    def update(cls, target: BulkTarget, columns: Columns, key: Columns) -> RowByRow:
        """Return the UPDATE of a row that is found by its key."""
        sets = {column: value for column, value in _parameters(columns).items() if column not in key}
        found = update(target.table).where(*_is_row(columns, key)).returning(_WRITTEN)
        return cls(found.values(sets), columns, in_context=found, set_columns=list(sets))

    @classmethod
    def delete(cls, target: BulkTarget, key: Columns) -> RowByRow:
        """Return the DELETE of a row that is found by its key."""
        return cls(delete(target.table).where(*_is_row(key, key)).returning(_WRITTEN), key)

    @classmethod
    def upsert(cls, target: BulkTarget, columns: Columns, key: Columns, sets: Columns) -> RowByRow:
        """Return the INSERT of a row, with ON CONFLICT by its key.

        Args:
            target: the table.
            columns: the columns that a row gives.
            key: the columns of a unique index.
            sets: the columns to set in an existing row; empty to leave it unchanged.
        """
        statement = insert(target.table)
        if sets:
            changes: dict[Any, Any] = {column: statement.excluded[column.key] for column in sets}
            for column in target.table.columns:
                default: Any = column.onupdate
                if default is not None and default.is_clause_element and column not in changes:
                    changes[column] = default.arg
            statement = statement.on_conflict_do_update(index_elements=list(key), set_=changes)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=list(key))
        found = statement.returning(_WRITTEN)
        return cls(found.values(_parameters(columns)), columns, in_context=found, set_columns=columns)

    async def execute(self, connection: AsyncConnection, raw: Any, group: Group) -> int:
        """Execute the statement for each row.

        Args:
            connection: SQLAlchemy's connection.
            raw: asyncpg's connection beneath it, in a transaction.
            group: the rows.

        Returns:
            The number of rows that the statements have written.
        """
        compiled = CompiledStatement(self._statement, connection.dialect, execution_options(connection))
        if compiled.needs_context or rewrites_statements(connection):
            rows = self._rows(group, in_context=True)
            return sum([len((await connection.execute(self._in_context, values)).all()) for _, values in rows])
        bound = [_bind(compiled, position, values) for position, values in self._rows(group)]
        return len(await raw.fetchmany(bound[0][0], [arguments for _, arguments in bound])) if bound else 0

    def _rows(self, group: Group, *, in_context: bool = False) -> list[tuple[int, dict[str, Any]]]:
        """Return the position of each row, and the parameters of the statement for it."""
        places = {
            column.key if in_context and column in self._set_columns else _name(number): group.place(column)
            for number, column in enumerate(self._columns)
        }
        return [
            (position, {name: record[place] for name, place in places.items()})
            for position, record in zip(group.positions, group.records(), strict=True)
        ]


class RowsAtTheEnds(RowByRow):
    """Updates or deletes rows whose key the driver sends as infinity: 9999-12-31 and 0001-01-01, or infinity itself.

    asyncpg reads both as the same Python value, so a row is found by either. If both exist, the key is ambiguous, and
    nothing is written.
    """

    @staticmethod
    def split(group: Group, key: Columns) -> tuple[Group, Group]:
        """Return the rows with an unambiguous key, and the rows at the ends of the calendar."""
        if not any(map(_may_hold_dates, key)):
            return group, group.first(0)
        keys = [group.of(column) for column in key]
        if not any(issubclass(type_, date) for values in keys for type_ in set(map(type, values))):
            return group, group.first(0)
        at_ends = [any(map(is_at_end, record)) for record in zip(*keys, strict=True)]
        if not any(at_ends):
            return group, group.first(0)
        places = range(len(group))
        return (
            group.choose([place for place in places if not at_ends[place]]),
            group.choose([place for place in places if at_ends[place]]),
        )

    @classmethod
    def update(cls, target: BulkTarget, columns: Columns, key: Columns) -> RowsAtTheEnds:
        """Return the UPDATE of a row that is found by its key, at either end."""
        sets = {column: value for column, value in _parameters(columns).items() if column not in key}
        found = update(target.table).where(*_is_row(columns, key, ends=True)).returning(*_texts(key))
        return cls(found.values(sets), columns, in_context=found, set_columns=list(sets))

    @classmethod
    def update_existing(cls, target: BulkTarget, columns: Columns, key: Columns, sets: Columns) -> RowsAtTheEnds:
        """Return the statement that does to an existing row what an upsert does, and returns no row if there is none.

        Args:
            target: the table.
            columns: the columns that a row gives.
            key: the columns of a unique index.
            sets: the columns to set; empty to leave the row unchanged.
        """
        is_row, parameters = _is_row(columns, key, ends=True), _parameters(columns)
        if not sets:
            texts: Any = _texts(key)
            return cls(select(*texts).select_from(target.table).where(*is_row), columns)
        changes: dict[Any, Any] = {column: parameters[column] for column in sets}
        for column in target.table.columns:
            default: Any = column.onupdate
            if default is not None and not default.is_clause_element and column not in changes:
                changes[column] = column  # an upsert does not make this value
        return cls(update(target.table).where(*is_row).values(changes).returning(*_texts(key)), columns)

    @classmethod
    def delete(cls, target: BulkTarget, key: Columns) -> RowsAtTheEnds:
        """Return the DELETE of a row that is found by its key, at either end."""
        return cls(delete(target.table).where(*_is_row(key, key, ends=True)).returning(*_texts(key)), key)

    async def execute(self, connection: AsyncConnection, raw: Any, group: Group) -> int:
        """Execute the statement for each row; see `RowByRow.execute`.

        Raises:
            BulkError: The key of a row is found at both ends.
        """
        written = 0
        for position, values in self._rows(group, in_context=True):
            found = (await connection.execute(self._in_context, values)).all()
            keys = sorted({", ".join(map(str, row)) for row in found})
            if len(keys) > 1:
                raise BulkError(
                    f"row {position}: its key matches {' and '.join(keys)}, which the driver reads as one value: "
                    f"write these rows with a statement that compares the key with a text",
                    row_index=position,
                )
            written += len(found)
        return written


def _bind(compiled: CompiledStatement, position: int, values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    try:
        sql, arguments = compiled.bind(values)
    except Exception as error:  # a type of the application can raise anything
        raise BulkError(f"row {position}: {error}", row_index=position) from error
    return sql, tuple(arguments)


def _texts(key: Columns) -> list[ColumnElement[str]]:
    return [cast(column, Text) for column in key]


def _is_row(columns: Columns, key: Columns, *, ends: bool = False) -> list[ColumnElement[bool]]:
    parameters = _parameters(columns)
    return [_is_either_end(column, parameters[column]) if ends else column == parameters[column] for column in key]


def _is_either_end(column: Column[Any], value: Any) -> ColumnElement[bool]:
    type_ = rendered_cast(column.type) or ""
    if type_ not in _ENDS:
        return column == value  # type: ignore[no-any-return]
    last, first = (_constant(end, type_) for end in _ENDS[type_])
    return or_(
        column == value,
        and_(value == _constant("infinity", type_), column == last),
        and_(value == _constant("-infinity", type_), column == first),
    )


def _constant(value: str, type_: str) -> ColumnElement[Any]:
    return literal_column(f"'{value}'::{type_}")


def _parameters(columns: Columns) -> dict[Column[Any], Any]:
    # Not the columns' own names: SQLAlchemy reserves them in an UPDATE.
    return {column: bindparam(_name(number), type_=column.type) for number, column in enumerate(columns)}


def _name(number: int) -> str:
    return f"longhaul_{number}"
