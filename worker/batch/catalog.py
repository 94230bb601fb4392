"""What the database itself says of a key: is it unique, can it be null, how many rows are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Executable, text
from sqlalchemy.dialects.postgresql import dialect as postgresql_dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

from worker.batch.compiled import CompiledStatement
from worker.batch.keyset import Keyset
from worker.errors import UnsupportedStatement

_DIALECT = postgresql_dialect()  # type: ignore[no-untyped-call]
_PREPARER = _DIALECT.identifier_preparer

_KEY = text("""
SELECT coalesce((SELECT array_agg(attname::text) FROM pg_attribute
                  WHERE attrelid = relation AND attname = ANY(wanted) AND NOT attnotnull), '{}') AS nullable,
       coalesce((SELECT jsonb_object_agg(attname, format_type(atttypid, NULL)) FROM pg_attribute
                  WHERE attrelid = relation AND attname = ANY(wanted) AND NOT attisdropped), '{}') AS types,
       (SELECT bool_or(NOT EXISTS (
                 SELECT FROM generate_series(0, indnkeyatts - 1) AS place
                   JOIN pg_attribute ON attrelid = relation AND attnum = indkey[place]
                  WHERE indcollation[place] NOT IN (0, attcollation)))
          FROM pg_index
         WHERE indrelid = relation AND indisunique AND indisvalid AND indpred IS NULL
           AND NOT 0 = ANY(indkey[0:indnkeyatts - 1])
           AND (SELECT array_agg(attname::text) FROM pg_attribute
                 WHERE attrelid = relation AND attnum = ANY(indkey[0:indnkeyatts - 1])) <@ wanted) AS unique_and_sorted
  FROM (SELECT to_regclass(CAST(:table AS text)) AS relation, CAST(:columns AS text[]) AS wanted) AS named
 WHERE relation IS NOT NULL
""")


async def checked_key(connection: AsyncConnection, keyset: Keyset, *, kind: str) -> Keyset:
    """Return the key with the types of its columns; raise `UnsupportedStatement` unless it is unique and not null.

    The tables in the code may say so and the database not: what it enforces is what counts.
    """
    typed = await look_key_up(connection, keyset, kind=kind)
    if isinstance(typed, str):
        raise UnsupportedStatement(f"{kind}: {typed}; walk by a unique, not-null key: by=...")
    return typed


async def refuse_missing_table(connection: AsyncConnection, keyset: Keyset, *, kind: str) -> None:
    """Raise `UnsupportedStatement` where the key's table is not in the database at all."""
    table = table_name(keyset)
    if await connection.scalar(text("SELECT to_regclass(CAST(:table AS text))"), {"table": table}) is None:
        raise _no_table(table, kind)


def _no_table(table: str, kind: str) -> UnsupportedStatement:
    return UnsupportedStatement(
        f"{kind}: there is no table {table} in the database: make it with your own migrations (`worker migrate` "
        f"makes those of the ledger alone), or correct database.url"
    )


async def look_key_up(connection: AsyncConnection, keyset: Keyset, *, kind: str) -> Keyset | str:
    """Return the key with the types of its columns, or why it cannot order a walk.

    Raises:
        UnsupportedStatement: its table is not in the database at all.
    """
    table = table_name(keyset)
    columns = [part.column.name for part in keyset.parts]
    shown = ", ".join(columns)
    found = (await connection.execute(_KEY, {"table": table, "columns": columns})).one_or_none()
    if found is None:
        raise _no_table(table, kind)
    missing = [column for column in columns if column not in found.types]
    if missing:
        return f"table {table} has no column {', '.join(missing)}"
    if found.nullable:
        return f"{table} ({', '.join(found.nullable)}) can be null, and a walk would leave those rows out"
    if found.unique_and_sorted is False:
        return (
            f"the unique index of {table} on ({shown}) has another collation than its column: it cannot say what comes "
            f"after a key, and each batch would sort the whole table"
        )
    if not found.unique_and_sorted:
        return f"{table} has no unique index on ({shown}), and rows of one key could be parted or left out"
    padded = [column for column in columns if found.types[column] in ("character", "bpchar")]
    if padded:
        return f"{table} ({', '.join(padded)}) is of type char(n), which a cursor cannot hold"
    return keyset.typed(found.types)


async def column_types(connection: AsyncConnection, keyset: Keyset) -> Keyset:
    """Return the key with the types of its columns, which need not be unique: that of groups."""
    table = table_name(keyset)
    columns = [part.column.name for part in keyset.parts]
    found = (await connection.execute(_KEY, {"table": table, "columns": columns})).one()
    return keyset.typed(found.types)


async def returns_sets(connection: AsyncConnection, names: Sequence[str]) -> bool:
    """Tell whether one of these functions can return several rows, as unnest() does."""
    query = text("SELECT EXISTS (SELECT FROM pg_proc WHERE proretset AND proname = ANY(CAST(:names AS text[])))")
    return bool(await connection.scalar(query, {"names": list(names)}))


async def estimate_rows(connection: AsyncConnection, statement: Executable, values: dict[str, Any]) -> int:
    """Return the planner's estimate of a statement's rows: by statistics, without running it."""
    sql, arguments = CompiledStatement(statement, connection.dialect).bind(values)
    plan = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", tuple(arguments))
    found = plan.scalar_one()
    tree = json.loads(found) if isinstance(found, str) else found
    return int(tree[0]["Plan"]["Plan Rows"])


def table_name(keyset: Keyset) -> str:
    """Return the name of a key's table, quoted where it has to be."""
    return _PREPARER.format_table(keyset.table)


def sql_text(statement: Executable) -> str:
    """Return a statement as SQL in one line, without its values: what tells it from a changed one."""
    assert isinstance(statement, ClauseElement)  # noqa: S101
    return " ".join(str(statement.compile(dialect=_DIALECT)).split())
