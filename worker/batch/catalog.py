"""What the database itself says of a key: is it unique, can it be null, how many rows are there."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Executable, text
from sqlalchemy.dialects.postgresql import dialect as postgresql_dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

from worker.batch.keyset import Keyset
from worker.errors import StatementRefused

_DIALECT = postgresql_dialect()  # type: ignore[no-untyped-call]
_PREPARER = _DIALECT.identifier_preparer

_KEY = text("""
SELECT coalesce((SELECT array_agg(attname::text) FROM pg_attribute
                  WHERE attrelid = relation AND attname = ANY(wanted) AND NOT attnotnull), '{}') AS nullable,
       coalesce((SELECT array_agg(attname::text) FROM pg_attribute
                  WHERE attrelid = relation AND attname = ANY(wanted) AND NOT attisdropped), '{}') AS found,
       EXISTS (SELECT FROM pg_index
                WHERE indrelid = relation AND indisunique AND indisvalid AND indpred IS NULL
                  AND NOT 0 = ANY(indkey[0:indnkeyatts - 1])
                  AND (SELECT array_agg(attname::text) FROM pg_attribute
                        WHERE attrelid = relation AND attnum = ANY(indkey[0:indnkeyatts - 1])) <@ wanted) AS is_unique
  FROM (SELECT to_regclass(CAST(:table AS text)) AS relation, CAST(:columns AS text[]) AS wanted) AS named
 WHERE relation IS NOT NULL
""")


async def check_key(connection: AsyncConnection, keyset: Keyset, *, kind: str) -> None:
    """Raise `StatementRefused` unless the key is unique and not null, by the database's own catalog.

    The tables in the code may say so and the database not: what it enforces is what counts.
    """
    reason = await key_problem(connection, keyset)
    if reason:
        raise StatementRefused(f"{kind}: {reason}; walk by a unique, not-null key: by=...")


async def key_problem(connection: AsyncConnection, keyset: Keyset) -> str | None:
    """Return why the key cannot order a walk, or None."""
    table = _PREPARER.format_table(keyset.table)
    columns = [part.column.name for part in keyset.parts]
    shown = ", ".join(columns)
    found = (await connection.execute(_KEY, {"table": table, "columns": columns})).one_or_none()
    if found is None:
        return f"there is no table {table} in the database"
    missing = [column for column in columns if column not in found.found]
    if missing:
        return f"table {table} has no column {', '.join(missing)}"
    if found.nullable:
        return f"{table} ({', '.join(found.nullable)}) can be null, and a walk would leave those rows out"
    if not found.is_unique:
        return f"{table} has no unique index on ({shown}), and rows of one key could be parted or left out"
    return None


async def estimate_rows(connection: AsyncConnection, statement: Executable, values: dict[str, Any]) -> int:
    """Return the planner's estimate of a statement's rows: by statistics, without running it."""
    assert isinstance(statement, ClauseElement)  # noqa: S101
    compiled: Any = statement.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    given = compiled.construct_params(values)
    process = compiled._bind_processors
    parameters = tuple(process[name](given[name]) if name in process else given[name] for name in compiled.positiontup)
    plan = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {compiled}", parameters)
    found = plan.scalar_one()
    tree = json.loads(found) if isinstance(found, str) else found
    return int(tree[0]["Plan"]["Plan Rows"])


def sql_text(statement: Executable) -> str:
    """Return a statement as SQL in one line, without its values: what tells it from a changed one."""
    assert isinstance(statement, ClauseElement)  # noqa: S101
    return " ".join(str(statement.compile(dialect=_DIALECT)).split())
