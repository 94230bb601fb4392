"""The planner's histogram of a key: keys between which are as many rows each.

It is read for keys of one column of integers or UUIDs, whose values are numbers. `ANALYZE` writes it, which autovacuum
runs after a tenth of a table has changed.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import table_name
from worker.batch.keyset import Keyset

#: Share of the rows that may have changed, and by which the table may have grown, while the histogram is current.
_CHANGED = 0.1
#: Bins for each range: ranges of three and of four bins are even within a third.
_LEAST_BINS = 3

#: The statistics of keys may be closed to the role. Most tables are analyzed before they are walked; one that has been
#: filled since has more pages than the planner knows of.
_STATE = text("""
SELECT pg_catalog.has_table_privilege('pg_catalog.pg_stats', 'SELECT') AS may_read,
       reltuples::bigint AS rows,
       reltuples > 0 AND coalesce(pg_catalog.pg_stat_get_mod_since_analyze(oid) < :changed * reltuples, false)
       AND pg_catalog.pg_relation_size(oid) / pg_catalog.current_setting('block_size')::int
           BETWEEN relpages * (1 - :changed) AND relpages * (1 + :changed) AS is_current
  FROM pg_catalog.pg_class
 WHERE oid = pg_catalog.to_regclass(CAST(:table AS text))
""")
_BOUNDS = text("""
SELECT stats.histogram_bounds::text::text[]
  FROM pg_catalog.pg_stats AS stats
  JOIN pg_catalog.pg_namespace AS schema ON schema.nspname = stats.schemaname
  JOIN pg_catalog.pg_class AS class ON class.relnamespace = schema.oid AND class.relname = stats.tablename
 WHERE class.oid = pg_catalog.to_regclass(CAST(:table AS text)) AND stats.attname = CAST(:column AS text)
 ORDER BY stats.inherited DESC
 LIMIT 1
""")


def has_numbers(keyset: Keyset) -> bool:
    """Return whether the keys are numbers: those of one column of integers or UUIDs."""
    part = keyset.parts[0]
    return len(keyset.parts) == 1 and part.is_exact and part.kind in ("int", "uuid")


def read_number(key: Any) -> int:
    """Return an integer or a UUID as a number."""
    return key if isinstance(key, int) else UUID(str(key)).int


async def read_histogram(connection: AsyncConnection, keyset: Keyset) -> list[int]:
    """Return the bounds of the histogram in ascending order, as numbers; none if there is no histogram.

    Args:
        connection: A connection whose role may read `pg_stats`.
        keyset: A key for which `has_numbers` holds.
    """
    values = {"table": table_name(keyset), "column": keyset.parts[0].column.name}
    is_int = keyset.parts[0].kind == "int"
    return [int(bound) if is_int else UUID(bound).int for bound in await connection.scalar(_BOUNDS, values) or []]


async def pick_ends(
    connection: AsyncConnection, keyset: Keyset, count: int, size: int, *, lower: list[Any] | None, last: list[Any]
) -> list[list[Any]]:
    """Return the last keys of ranges with about the same number of rows, but for the last range, as cursors.

    Args:
        connection: A connection.
        keyset: The key.
        count: The largest number of ranges.
        size: The number of rows that a range has at least.
        lower: The key behind which the walk begins; None for the first one.
        last: The last key of the walk.

    Returns:
        The keys in the order of the walk; none if the histogram is stale, or too coarse for half of the ranges.
    """
    if not has_numbers(keyset):
        return []
    state = (await connection.execute(_STATE, {"table": table_name(keyset), "changed": _CHANGED})).one_or_none()
    if state is None or not (state.may_read and state.is_current):
        return []
    bounds = await read_histogram(connection, keyset)
    if len(bounds) < 2:
        return []
    per_bin = state.rows / (len(bounds) - 1)
    part = keyset.parts[0]
    begin, end = (None if key is None else read_number(keyset.decode(key)[0]) for key in (lower, last))
    below, above = (end, begin) if part.descending else (begin, end)
    inner = [at for at in bounds[1:-1] if (below is None or at > below) and (above is None or at < above)]
    inner = inner[::-1] if part.descending else inner
    bins = len(inner) + 1
    count = min(count, max(1, int(bins * per_bin / size)))
    count, least = min(count, bins // _LEAST_BINS), count / 2
    ends = inner[:0] if count < least else [inner[bins * number // count - 1] for number in range(1, count)]
    return [[at if part.kind == "int" else str(UUID(int=at))] for at in ends]
