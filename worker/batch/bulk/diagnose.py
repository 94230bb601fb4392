"""Finds the row on which a bulk operation failed. It runs only after an operation has failed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from worker.batch.bulk.eligibility import are_flat
from worker.batch.bulk.rows import Group, bind_values
from worker.batch.bulk.target import BulkTarget
from worker.db.engine import Database
from worker.db.errors import blames_a_row
from worker.errors import BulkError, format_error, iter_causes

#: The errors of a statement of the driver or of SQLAlchemy. For unfit values, the driver raises Python's own errors.
STATEMENT_ERRORS = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, SQLAlchemyError),
    *(AttributeError, LookupError, OverflowError, TypeError, ValueError),
)

_COPY_LINE = re.compile(r"^COPY .*, line (\d+)")
_KEY_DETAIL = re.compile(r"^Key \((?P<columns>[^()=]*)\)=\((?P<values>.*)\) ")


async def find_row(
    database: Database, target: BulkTarget, group: Group, error: BaseException, *, whole_rows: bool
) -> int | None:
    """Return the position of the row on which a statement for a whole group failed; None if it cannot be found.

    COPY reports the line, and a violated key its values. For all other errors the rows are copied to an empty copy of
    the table, by halves, in a transaction that is rolled back.

    Args:
        database: provides the connection for that search.
        target: the table.
        group: the rows.
        error: the driver's error.
        whole_rows: whether the statement inserts rows; False if it sets some columns of existing rows.
    """
    found = _from_copy(group, error)
    if found is None:
        found = _from_detail(group, getattr(error, "detail", None))
    if found is None:
        found = await _by_copies(database, target, group, whole_rows=whole_rows)
    return found


def make_error(target: BulkTarget, error: BaseException, position: int | None) -> BulkError:
    """Return the error that names the row on which a bulk operation failed."""
    driver = driver_error(error)
    message = str(driver) or format_error(driver)
    detail = getattr(driver, "detail", None)
    if detail and detail not in message:
        message = f"{message} ({detail})"
    where = "" if position is None else f"row {position}: "
    return BulkError(f"{where}{target.name}: {message}", row_index=position)


async def find_first_failing(fails: Callable[[int], Awaitable[bool]], count: int) -> int | None:
    """Return the index of the first row that fails together with the rows before it; None if the rows do not fail.

    Args:
        fails: takes a number, and returns whether that many rows from the first one fail.
        count: the number of rows.
    """
    start, end = 0, count
    if not await fails(count):
        return None
    while end - start > 1:
        middle = (start + end) // 2
        if await fails(middle):
            end = middle
        else:
            start = middle
    return start


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error in an error of SQLAlchemy."""
    return next((cause for cause in iter_causes(error) if isinstance(cause, asyncpg.PostgresError)), error)


def _from_copy(group: Group, error: BaseException) -> int | None:
    found = _COPY_LINE.match(getattr(error, "context", None) or "")
    if found is None:
        return None
    line = int(found.group(1))
    return group.positions[line - 1] if line <= len(group.positions) else None


def _from_detail(group: Group, detail: str | None) -> int | None:
    """Return the row with the values of a violated key; None if the server formats the values differently."""
    found = _KEY_DETAIL.match(detail or "")
    if found is None:
        return None
    names = [name.strip().strip('"') for name in found.group("columns").split(",")]
    places = [place for name in names for place, column in enumerate(group.columns) if column.name == name]
    if len(places) != len(names):
        return None
    values = [bind_values(group.columns[place], group.values[place], group.positions) for place in places]
    wanted = found.group("values")
    rows = [
        position
        for record, position in zip(zip(*values, strict=True), group.positions, strict=True)
        if ", ".join(map(str, record)) == wanted
    ]
    # Of two rows with the same key, the second one is the violation.
    return None if not rows else rows[min(1, len(rows) - 1)]


async def _by_copies(database: Database, target: BulkTarget, group: Group, *, whole_rows: bool) -> int | None:
    # asyncpg keeps the types of a table's columns by the name of the table: each search needs a name of its own.
    name = f"longhaul_diagnosis_{secrets.token_hex(8)}"
    try:
        async with database.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            transaction = raw.transaction()
            await transaction.start()
            try:
                await raw.execute(
                    f"CREATE TEMP TABLE {name} (LIKE {target.name} INCLUDING DEFAULTS INCLUDING CONSTRAINTS "
                    f"INCLUDING GENERATED INCLUDING IDENTITY) ON COMMIT DROP"
                )
                if not whole_rows:
                    await _drop_other_columns(raw, name, target, group)
                place = await find_first_failing(lambda count: _copy_fails(raw, name, group.first(count)), len(group))
                return None if place is None else group.positions[place]
            finally:
                await transaction.rollback()
    except (*STATEMENT_ERRORS, OSError):
        return None


async def _drop_other_columns(raw: Any, name: str, target: BulkTarget, group: Group) -> None:
    """Keep the columns that an UPDATE sets: the others have their values in the table already."""
    others = [column for column in target.table.columns if column not in group.columns]
    for column in target.quoted(others):
        await raw.execute(f"ALTER TABLE {name} DROP COLUMN {column} CASCADE")


async def _copy_fails(raw: Any, name: str, group: Group) -> bool:
    arrays = [
        bind_values(column, values, group.positions) for column, values in zip(group.columns, group.values, strict=True)
    ]
    if not are_flat(arrays):
        return True
    savepoint = raw.transaction()
    await savepoint.start()
    try:
        columns = [column.name for column in group.columns]
        await raw.copy_records_to_table(name, columns=columns, records=zip(*arrays, strict=True))
    except STATEMENT_ERRORS as error:
        return blames_a_row(error)
    finally:
        await savepoint.rollback()
    return False
