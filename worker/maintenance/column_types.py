"""The types of columns in the database, and whether one of them keeps each value of another one.

If PostgreSQL stores a value in a column of another type, it rounds a number, cuts a time off, and drops spaces at the
end of a text, without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, MetaData, Table
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import NoSuchTableError

from worker.errors import UsageError
from worker.maintenance.target import Target, table_name

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

_DIALECT = dialect()  # type: ignore[no-untyped-call]
_TEXT = re.compile(r"(?:TEXT|VARCHAR)(?:\((\d+)\))?(?: COLLATE .*)?")
_NUMBER = re.compile(r"NUMERIC(?:\(\d+(?:, (-?\d+))?\))?")
_TIME = re.compile(r"(TIMESTAMP|TIME)(?:\((\d)\))? (WITH|WITHOUT) TIME ZONE")
_INTEGERS = ("SMALLINT", "INTEGER", "BIGINT")
#: Types that hold each value of another one exactly.
_WIDER = {
    "SMALLINT": ("REAL", "DOUBLE PRECISION"),
    "INTEGER": ("DOUBLE PRECISION",),
    "REAL": ("DOUBLE PRECISION",),
}


async def read_tables(ctx: JobContext, *targets: Target) -> list[Table]:
    """Return tables as the database has them.

    Args:
        ctx: The context of the job.
        *targets: The tables.

    Returns:
        The tables, in the same order.

    Raises:
        UsageError: A table does not exist.
    """
    async with ctx.session() as session:
        connection = await session.connection()
        return [await connection.run_sync(_read_table, target) for target in targets]


def _read_table(connection: Connection, target: Target) -> Table:
    table = target.table
    try:
        return Table(table.name, MetaData(), schema=table.schema, autoload_with=connection, resolve_fks=False)
    except NoSuchTableError:
        raise UsageError(
            f"{target.owner}: there is no table {target.name} in the database: create it with your own migrations"
        ) from None


def ensure_values_stay(owner: str, into: Table, pairs: Iterable[tuple[Column[Any], Column[Any]]], advice: str) -> None:
    """Raise `UsageError` if a column could change the values that it gets from another one.

    Args:
        owner: The job, for the error.
        into: The table that gets the values.
        pairs: Columns, each with the column that gets its values; both as the database has them.
        advice: An order that avoids the error.
    """
    changed = [
        f"{to.name} ({_type_name(each)} to {_type_name(to)})"
        for each, to in pairs
        if not keeps_values(_type_name(each), _type_name(to))
    ]
    if changed:
        raise UsageError(f"{owner}: {table_name(into)} could change values of {', '.join(changed)}: {advice}")


def _type_name(column: Column[Any]) -> str:
    return column.type.compile(dialect=_DIALECT)


def keeps_values(kind: str, into: str) -> bool:
    """Return whether a type holds each value of another one, or PostgreSQL refuses the value with an error."""
    if kind == into or into in _WIDER.get(kind, ()):
        return True
    if kind in _INTEGERS:
        number, text = _NUMBER.fullmatch(into), _TEXT.fullmatch(into)
        is_whole = number is not None and int(number[1] or 0) >= 0
        return into in _INTEGERS or is_whole or (text is not None and text[1] is None)
    if kind == "DATE":
        return into.startswith("TIMESTAMP") and into.endswith("WITHOUT TIME ZONE")
    return _keeps_length(kind, into)


def _keeps_length(kind: str, into: str) -> bool:
    """Return whether a type is as long, or as precise, as another one of the same family."""
    texts = _TEXT.fullmatch(kind), _TEXT.fullmatch(into)
    if texts[0] is not None and texts[1] is not None:
        return texts[1][1] is None or (texts[0][1] is not None and int(texts[0][1]) <= int(texts[1][1]))
    numbers = _NUMBER.fullmatch(kind), _NUMBER.fullmatch(into)
    if numbers[0] is not None and numbers[1] is not None:
        return into == "NUMERIC" or (kind != "NUMERIC" and int(numbers[0][1] or 0) <= int(numbers[1][1] or 0))
    times = _TIME.fullmatch(kind), _TIME.fullmatch(into)
    if times[0] is not None and times[1] is not None:
        is_same = times[0][1] == times[1][1] and times[0][3] == times[1][3]
        return is_same and int(times[0][2] or 6) <= int(times[1][2] or 6)
    return False
