"""Finds collations whose version has changed since the database recorded it, so that indexes may be out of order.

A newer libc or ICU can sort texts differently. An index that was built before keeps the old order: a search in it can
miss rows, and a walk by a text would omit them. PostgreSQL warns when a session begins, and uses the index anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

#: PostgreSQL 14 records no version of the database's own collation.
_SINCE = (15,)
_CHANGED = """
SELECT known.name, known.recorded, known.actual, known.cure
  FROM (SELECT c.oid, c.collname::text AS name, c.collversion AS recorded,
               pg_catalog.pg_collation_actual_version(c.oid) AS actual,
               pg_catalog.format('ALTER COLLATION %I.%I REFRESH VERSION', n.nspname, c.collname) AS cure
          FROM pg_catalog.pg_collation AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.collnamespace
         WHERE c.collprovider <> 'd' AND c.collversion IS NOT NULL{database}) AS known
 WHERE known.recorded IS DISTINCT FROM known.actual
   AND EXISTS (SELECT FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS r ON r.oid = a.attrelid
                WHERE a.attcollation = known.oid AND r.relkind IN ('r', 'p', 'm') AND NOT a.attisdropped
                  AND {scope})
 ORDER BY 1
"""
_DATABASE = """
        UNION ALL
        SELECT 100, 'the default of database ' || d.datname, d.datcollversion,
               pg_catalog.pg_database_collation_actual_version(d.oid),
               pg_catalog.format('ALTER DATABASE %I REFRESH COLLATION VERSION', d.datname)
          FROM pg_catalog.pg_database AS d
         WHERE d.datname = pg_catalog.current_database() AND d.datcollversion IS NOT NULL"""
_ALL_TABLES = "r.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
_ONE_TABLE = "r.oid = pg_catalog.to_regclass(CAST(:table AS text)) AND a.attname = ANY(CAST(:columns AS text[]))"


async def find_changed_collations(
    connection: AsyncConnection, *, table: str | None = None, columns: Sequence[str] = ()
) -> list[str]:
    """Return a description of each collation in use whose version has changed, with the statements that repair it.

    Args:
        connection: a connection to the database.
        table: name of a table, to check the collations of its columns alone; by default those of all tables.
        columns: the columns of that table.
    """
    has_version = (connection.dialect.server_version_info or ()) >= _SINCE
    scope = _ALL_TABLES if table is None else _ONE_TABLE
    query = text(_CHANGED.format(database=_DATABASE if has_version else "", scope=scope))
    values = {} if table is None else {"table": table, "columns": list(columns)}
    return [
        f"collation {name} has changed from version {recorded} to {actual or 'none'} (a newer libc or ICU), so indexes "
        f"on its texts may be out of order: run REINDEX for them, and then {cure}"
        for name, recorded, actual, cure in await connection.execute(query, values)
    ]
