"""Which row was it? Asked only after a bulk operation has failed."""

from __future__ import annotations

import re
from typing import Any

import asyncpg

from worker.batch.bulk.rows import BulkTarget, Group
from worker.db.engine import Database
from worker.errors import BulkError

_COPY_LINE = re.compile(r"^COPY .*, line (\d+)")
_KEY_DETAIL = re.compile(r"^(?:Key|Failing row) .*?\((?P<columns>[^=]*)\)=\((?P<values>.*)\) ")


async def explain_failure(
    database: Database, target: BulkTarget, groups: list[Group], error: BaseException, *, whole_rows: bool = True
) -> BulkError:
    """Return the error that names the row on which a bulk operation failed.

    COPY tells the line; a unique or foreign key error tells the key; for all others the rows are tried again
    on an empty copy of the table, in halves, in a transaction that is rolled back.
    """
    message = str(error)
    detail = getattr(error, "detail", None)
    if detail and detail not in message:
        message = f"{message} ({detail})"
    index = _from_copy(groups, error)
    if index is None:
        index = _from_detail(groups, detail)
    if index is None:
        index = await _by_halves(database, target, groups, whole_rows=whole_rows)
    where = "" if index is None else f"row {index}: "
    return BulkError(f"{where}{target.name}: {message}", row_index=index)


def _from_copy(groups: list[Group], error: BaseException) -> int | None:
    found = _COPY_LINE.match(getattr(error, "context", None) or "")
    if found is None or len(groups) != 1:
        return None
    line = int(found.group(1))
    return groups[0].positions[line - 1] if line <= len(groups[0].positions) else None


def _from_detail(groups: list[Group], detail: str | None) -> int | None:
    found = _KEY_DETAIL.match(detail or "")
    if found is None:
        return None
    names = [name.strip().strip('"') for name in found.group("columns").split(",")]
    wanted = found.group("values")
    for group in groups:
        places = [i for name in names for i, column in enumerate(group.columns) if column.name == name]
        if len(places) != len(names):
            continue
        for record, position in zip(group.records, group.positions, strict=True):
            if ", ".join(str(record[place]) for place in places) == wanted:
                return position
    return None


async def _by_halves(database: Database, target: BulkTarget, groups: list[Group], *, whole_rows: bool) -> int | None:
    try:
        async with database.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            transaction = raw.transaction()
            await transaction.start()
            try:
                await raw.execute(
                    f"CREATE TEMP TABLE longhaul_diagnosis (LIKE {target.name} INCLUDING DEFAULTS "
                    f"INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING IDENTITY) ON COMMIT DROP"
                )
                for group in groups:
                    if not whole_rows:
                        await _drop_other_columns(raw, target, group)
                    found = await _first_failing(raw, group)
                    if found is not None:
                        return group.positions[found]
            finally:
                await transaction.rollback()
    except (asyncpg.PostgresError, OSError):
        return None
    return None


async def _drop_other_columns(raw: Any, target: BulkTarget, group: Group) -> None:
    """Leave the columns that an UPDATE sets: the others have their values in the table already."""
    others = [column for column in target.table.columns if column not in group.columns]
    for name in target.quoted(others):
        await raw.execute(f"ALTER TABLE longhaul_diagnosis DROP COLUMN {name} CASCADE")


async def _first_failing(raw: Any, group: Group) -> int | None:
    columns, records = [column.name for column in group.columns], group.records

    async def fails(start: int, end: int) -> bool:
        savepoint = raw.transaction()
        await savepoint.start()
        try:
            await raw.copy_records_to_table("longhaul_diagnosis", columns=columns, records=records[start:end])
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError, TypeError, ValueError):
            return True
        finally:
            await savepoint.rollback()
        return False

    start, end = 0, len(records)
    if not await fails(start, end):
        return None
    while end - start > 1:
        middle = (start + end) // 2
        if await fails(start, middle):
            end = middle
        else:
            start = middle
    return start
