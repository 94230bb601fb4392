"""Looks up whether an index serves the order of a walk: otherwise each batch sorts the rest of the table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import table_name
from worker.batch.compiled import CompiledStatement
from worker.batch.keyset import Keyset
from worker.errors import UnsupportedStatement

logger = logging.getLogger("longhaul.batch")

_PREPARER = asyncpg_dialect().identifier_preparer  # type: ignore[no-untyped-call]
_PROBED_ROWS = 100
#: Rows with the same first column of the key that each batch may sort, if an index has only the first columns.
_MOST_EQUAL_ROWS = 1_000

# Of indoption, 0 is ASC NULLS LAST and 3 is DESC NULLS FIRST. An index is read in both directions. The planner regards
# the place of nulls also for a column that has none. The options are texts, because asyncpg looks an array of integers
# up in the catalog, which takes 5 ms for each connection.
_SERVING = text("""
SELECT pg_catalog.quote_ident(relname) AS name
  FROM pg_catalog.pg_index
  JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid
  JOIN pg_catalog.pg_am ON pg_am.oid = relam AND amname = 'btree'
 CROSS JOIN (SELECT CAST(:columns AS text[]) AS wanted, CAST(:options AS text[]) AS options) AS asked
 WHERE indrelid = pg_catalog.to_regclass(CAST(:table AS text)) AND indisvalid AND indpred IS NULL
   AND indnkeyatts >= pg_catalog.cardinality(wanted)
   AND (SELECT pg_catalog.bool_and(attname = wanted[place] AND indcollation[place - 1] IN (0, attcollation)
                                   AND opcdefault)
          FROM pg_catalog.generate_series(1, pg_catalog.cardinality(wanted)) AS place
          LEFT JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = indkey[place - 1]
          LEFT JOIN pg_catalog.pg_opclass ON pg_opclass.oid = indclass[place - 1]) IS TRUE
   AND (SELECT pg_catalog.bool_and(indoption[place - 1]::text = options[place])
            OR pg_catalog.bool_and((3 - indoption[place - 1])::text = options[place])
          FROM pg_catalog.generate_series(1, pg_catalog.cardinality(wanted)) AS place)
 ORDER BY indisprimary DESC, indisunique DESC, relname
 LIMIT 1
""")

_EQUAL_ROWS = text("""
SELECT greatest(reltuples, 1) / nullif(CASE WHEN n_distinct < 0 THEN -n_distinct * greatest(reltuples, 1)
                                            ELSE n_distinct END, 0)
  FROM pg_catalog.pg_class
  JOIN pg_catalog.pg_stats ON schemaname = relnamespace::regnamespace::text AND tablename = relname
 WHERE pg_class.oid = pg_catalog.to_regclass(CAST(:table AS text)) AND attname = :column
 ORDER BY inherited DESC
 LIMIT 1
""")


async def find_serving_index(
    connection: AsyncConnection, table: str, columns: Sequence[str], descending: Sequence[bool]
) -> str | None:
    """Return the name of an index that has the order of a key; None if there is none.

    Args:
        connection: A connection.
        table: The table, in SQL.
        columns: The columns of the key.
        descending: Whether each of them descends.
    """
    options = ["3" if down else "0" for down in descending]
    values = {"table": table, "columns": list(columns), "options": options}
    name: str | None = await connection.scalar(_SERVING, values)
    return name


async def find_index(connection: AsyncConnection, keyset: Keyset, keys: Select[Any]) -> str | None:
    """Return the index, or the indexes, that serve the order of a walk; None if its batches have to sort.

    An index that begins with columns that the statement compares with constants, or a partial index, serves the order
    of this statement alone: the planner is asked for it.

    Args:
        connection: A connection, whose settings stay as they are.
        keyset: The key.
        keys: The keys that the walk selects, in its order.
    """
    parts = keyset.parts
    name = await find_serving_index(
        connection, table_name(keyset), [part.column.name for part in parts], [part.descending for part in parts]
    )
    return name or await _ask_planner(connection, keyset, keys)


async def _ask_planner(connection: AsyncConnection, keyset: Keyset, keys: Select[Any]) -> str | None:
    """Return the indexes of the plan that sorts least; None if it has to sort, whatever the size of the table."""
    sql, arguments = CompiledStatement(keys.limit(_PROBED_ROWS), connection.dialect).bind({})
    savepoint = await connection.begin_nested()
    try:
        for method in ("sort", "bitmapscan", "hashagg"):
            await connection.execute(text(f"SET LOCAL enable_{method} = off"))
        found = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", tuple(arguments))).scalar_one()
    finally:
        await savepoint.rollback()
    nodes = list(_walk_plan((json.loads(found) if isinstance(found, str) else found)[0]["Plan"]))
    indexes = [node["Index Name"] for node in nodes if "Index Name" in node]
    if any(node["Node Type"] == "Sort" for node in nodes):
        return None
    if any(node["Node Type"] == "Incremental Sort" for node in nodes):
        first = {"table": table_name(keyset), "column": keyset.parts[0].column.name}
        equal_rows = await connection.scalar(_EQUAL_ROWS, first)
        if equal_rows is None or equal_rows > _MOST_EQUAL_ROWS:
            return None
        logger.warning(
            "an index has only the first columns of a walk's key, so each batch sorts rows that are equal in them: "
            "index=%s",
            ", ".join(indexes),
        )
    return ", ".join(dict.fromkeys(map(_PREPARER.quote, indexes))) or "none is needed"


def _walk_plan(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", []):
        yield from _walk_plan(below)


def make_index_statement(keyset: Keyset) -> str:
    """Return the CREATE INDEX that serves the order of a walk."""
    all_down = all(part.descending for part in keyset.parts)
    columns = [
        _PREPARER.quote(part.column.name) + (" DESC" if part.descending and not all_down else "")
        for part in keyset.parts
    ]
    return f"CREATE INDEX CONCURRENTLY ON {table_name(keyset)} ({', '.join(columns)})"


def describe_unserved(keyset: Keyset, kind: str) -> str:
    """Return the reason why a walk whose order no index has is refused, and the remedies."""
    shown = ", ".join(part.column.name for part in keyset.parts)
    return (
        f"{kind}: no index has the order ({shown}) of the walk over {table_name(keyset)}, so each batch would sort the "
        f"rest of the table: {make_index_statement(keyset)}; or walk by another key with by=; or set allow_sort=True "
        f"if the table is small"
    )


async def ensure_order_is_served(
    connection: AsyncConnection, keyset: Keyset, keys: Select[Any], *, kind: str, allow_sort: bool
) -> None:
    """Raise `UnsupportedStatement` for a walk whose batches would each sort the rest of the table.

    Args:
        connection: A connection.
        keyset: The key.
        keys: The keys that the walk selects, in its order.
        kind: The kind of the walk.
        allow_sort: Only log it.
    """
    if await find_index(connection, keyset, keys) is not None:
        return
    if not allow_sort:
        raise UnsupportedStatement(describe_unserved(keyset, kind))
    table, shown = table_name(keyset), ", ".join(part.column.name for part in keyset.parts)
    logger.warning(
        "no index has the order of a walk, so each batch sorts the rest of the table: kind=%s table=%s key=(%s) "
        "cure='%s'",
        kind,
        table,
        shown,
        make_index_statement(keyset),
    )
