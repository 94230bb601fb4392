"""Divides the keys of a walk into ranges with about the same number of rows.

The rows are counted, not the values of the key: clumps and gaps do not matter, nor does the age of the planner's
statistics. In a table up to some 160 MB all keys of the walk are read. In a larger one, the keys of sampled pages are,
and those of them that the statement has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select, tablesample, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import table_name
from worker.batch.keyset import Keyset
from worker.errors import UnsupportedStatement

#: Pages up to which all keys are read.
_EXACT_PAGES = 20_000
#: Pages of the sample for each range. Neighbours share a page: this many keep ranges within a factor of 2.
_PAGES_PER_RANGE = 100
_MOST_SAMPLED_KEYS = 50_000
#: A sample with fewer keys of the walk for each range says too little.
_LEAST_KEYS_PER_RANGE = 50

_PAGES = text("""
SELECT coalesce((SELECT pg_catalog.sum(pg_catalog.pg_relation_size(relid)) FROM pg_catalog.pg_partition_tree(relation)),
                pg_catalog.pg_relation_size(relation)) / pg_catalog.current_setting('block_size')::int
       AS pages,
       EXISTS (SELECT FROM pg_catalog.pg_inherits JOIN pg_catalog.pg_class ON pg_class.oid = inhparent
                WHERE inhparent = relation AND relkind <> 'p') AS has_children
  FROM (SELECT pg_catalog.to_regclass(CAST(:table AS text)) AS relation) AS named
""")


async def find_range_ends(
    connection: AsyncConnection,
    keyset: Keyset,
    keys: Select[Any],
    values: Mapping[str, Any],
    *,
    last: list[Any] | None,
    count: int,
    size: int,
    may_sample: bool = True,
) -> list[list[Any]]:
    """Return the last key of each range, in order; that of the last range is the last key of the walk.

    Args:
        connection: The run's own connection.
        keyset: The key.
        keys: A select of the key's columns, for all rows of the walk.
        values: Its parameters.
        last: The last key of the walk; None for the last one that is found.
        may_sample: Whether rows of the key's table stand for those of the walk.
        count: The largest number of ranges.
        size: The number of rows that a range has at least.

    Raises:
        UnsupportedStatement: Other tables inherit from the table.
    """
    table = table_name(keyset)
    pages, has_children = (await connection.execute(_PAGES, {"table": table})).one()
    if has_children:
        raise UnsupportedStatement(
            f"parallel= does not divide {table}, from which other tables inherit: their rows can have the same keys. "
            f"Walk each table alone, or make it a partitioned table"
        )
    pages = int(pages or 0)
    found: Sequence[Any] = ()
    if may_sample and pages > _EXACT_PAGES:
        sample = await _sample_keys(connection, keyset, 100 * count * _PAGES_PER_RANGE / pages)
        some = range_ends(keyset, keys.where(keyset.one_of()), count, _LEAST_KEYS_PER_RANGE)
        found = (await connection.execute(keyset.in_schema(some), {**values, **keyset.array_values(sample)})).all()
    if len(found) < count:
        all_ = keyset.in_schema(range_ends(keyset, keys, count, size))
        found = (await connection.execute(all_, dict(values))).all()
    ends = [keyset.encode(row) for row in found]
    return ends if last is None else [*ends[:-1], last]


async def _sample_keys(connection: AsyncConnection, keyset: Keyset, percent: float) -> list[list[Any]]:
    """Return the keys of rows in sampled pages of the table."""
    sampled = tablesample(keyset.table, func.system(min(100.0, percent)), name="sampled")
    columns = keyset.over([sampled.c[part.column.key] for part in keyset.parts]).cursor_columns
    statement = select(*columns).order_by(func.random()).limit(_MOST_SAMPLED_KEYS)
    return [keyset.encode(row) for row in await connection.execute(keyset.in_schema(statement))]


def range_ends(keyset: Keyset, keys: Select[Any], count: int, size: int) -> Select[Any]:
    """Return a statement for the last keys of ranges with the same number of rows, in the form of cursors.

    Args:
        keyset: The key.
        keys: A select of the key's columns, for all rows of the walk.
        count: The largest number of ranges.
        size: The number of rows that a range has at least.
    """
    rows = keys.order_by(None).subquery()
    columns = list(rows.columns)[: len(keyset.parts)]
    order = keyset.over(columns)
    number = func.row_number().over(order_by=order.order_by())
    numbered = select(*columns, number.label("longhaul_n"), func.count().over().label("longhaul_total")).subquery()
    n, total = numbered.c.longhaul_n, numbered.c.longhaul_total
    ranges = func.least(count, func.greatest(total // size, 1))
    ends = keyset.over(list(numbered.columns)[: len(columns)])
    return (
        select(*ends.cursor_columns)
        .where((n * ranges) // total > ((n - 1) * ranges) // total)
        .order_by(*ends.order_by())
    )
