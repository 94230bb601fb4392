"""Divides the keys of a walk into ranges with about the same number of rows.

The rows are counted, not the values of the key, so clumps and gaps do not matter. If the walk has all rows of a table,
the planner's histogram has the ends of its ranges, unless the table has changed since ANALYZE. Otherwise, in a table up
to some 160 MB, all keys of the walk are read; in a larger one, the keys of sampled pages are, and those of them that
the statement has. In a partitioned table, each range lies in one partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import BigInteger, Numeric, Select, cast, func, select, tablesample, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import table_name
from worker.batch.histogram import pick_ends
from worker.batch.keyset import Keyset
from worker.batch.partitions import Partition, list_partitions, unit_number
from worker.errors import UnsupportedStatement
from worker.ledger.records import RangeBounds

#: Pages up to which all keys are read.
_EXACT_PAGES = 20_000
#: Pages of the sample for each range. Neighbours share a page: this many keep ranges within a factor of 2.
_PAGES_PER_RANGE = 100
#: Keys of the sample for each range. If the walk has few of them, another sample has more.
_KEYS_PER_RANGE = 500
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


@dataclass(frozen=True)
class Division:
    """The statement that is divided, and the number of its ranges.

    Attributes:
        keyset: The key.
        keys: A select of the key's columns, for all rows of the walk.
        values: Its parameters.
        count: The largest number of ranges, but for partitions: each has at least one.
        size: The number of rows that a range has at least.
        by_partition: Whether the partitions of the key's table are divided each for itself.
        may_sample: Whether rows of the key's table stand for those of the walk.
        is_whole: Whether the rows are those of the key's table, all of them.
    """

    keyset: Keyset
    keys: Select[Any]
    values: Mapping[str, Any]
    count: int
    size: int
    by_partition: bool
    may_sample: bool = True
    is_whole: bool = False


async def find_ranges(
    connection: AsyncConnection, division: Division, *, lower: list[Any] | None, last: list[Any] | None
) -> list[RangeBounds]:
    """Return the ranges of a walk.

    Args:
        connection: The run's own connection.
        division: What is divided.
        lower: The key behind which the walk begins; None for the first one.
        last: The last key of the walk; None for the last one that is found.

    Raises:
        UnsupportedStatement: Other tables inherit from the table.
    """
    keyset, count = division.keyset, division.count
    table = table_name(keyset)
    pages, has_children = (await connection.execute(_PAGES, {"table": table})).one()
    if has_children:
        raise UnsupportedStatement(
            f"parallel= does not divide {table}, from which other tables inherit: their rows can have the same keys. "
            f"Walk each table alone, or make it a partitioned table"
        )
    pages = int(pages or 0)
    partitions = await list_partitions(connection, keyset) if division.by_partition else []
    if division.is_whole and not partitions:
        last = last or await _find_last(connection, division)
        if last is None:
            return []
        picked = await pick_ends(connection, keyset, count, division.size, lower=lower, last=last)
        if picked:
            return list(_make_bounds([], {0: [*picked, last]}, lower, last, is_sampled=True))
    found: Sequence[Any] = ()
    is_sampled = False
    if division.may_sample and pages > _EXACT_PAGES:
        for keys in (count * _KEYS_PER_RANGE, _MOST_SAMPLED_KEYS):
            found = await _find_sampled_ends(connection, division, partitions, pages, keys)
            is_sampled = bool(found) and found[0].longhaul_total >= count * _LEAST_KEYS_PER_RANGE
            if is_sampled:
                break
    if not is_sampled:
        all_ = range_ends(division, division.keys, partitions, division.size)
        found = (await connection.execute(keyset.in_schema(all_), dict(division.values))).all()
    elif last is None:
        last = await _find_last(connection, division)
    ends: dict[int, list[list[Any]]] = {partition.id: [] for partition in partitions} or {0: []}
    for row in found:
        if row.longhaul_unit not in ends:  # a partition that was attached since
            return await find_ranges(connection, replace(division, by_partition=False), lower=lower, last=last)
        ends[row.longhaul_unit].append(keyset.encode(row[: len(keyset.parts)]))
    return list(_make_bounds(partitions, ends, lower, last, is_sampled=is_sampled))


def _make_bounds(
    partitions: Sequence[Partition],
    ends: Mapping[int, list[list[Any]]],
    lower: list[Any] | None,
    last: list[Any] | None,
    *,
    is_sampled: bool,
) -> Iterator[RangeBounds]:
    """Yield the ranges with these ends. After a sample, rows that were not found can follow, in any partition."""
    if not partitions:
        found = ends[0]
        uppers = found if last is None else [*found[:-1], last]
        for begin, upper in zip([lower, *uppers], uppers, strict=False):
            yield RangeBounds(begin, upper)
        return
    for partition in partitions:
        found = ends[partition.id]
        uppers = [*found[:-1], last] if is_sampled and last is not None else found
        for begin, upper in zip([lower, *uppers], uppers, strict=False):
            yield RangeBounds(begin, upper, partition.name, partition.condition)


async def _find_last(connection: AsyncConnection, division: Division) -> list[Any] | None:
    """Return the last key of the walk; None if it has no row."""
    rows = division.keys.order_by(None).subquery()
    keyset = division.keyset.over(list(rows.columns)[: len(division.keyset.parts)])
    statement = select(*keyset.cursor_columns).order_by(*keyset.order_by(reverse=True)).limit(1)
    row = (await connection.execute(keyset.in_schema(statement), dict(division.values))).one_or_none()
    return None if row is None else keyset.encode(row)


async def _find_sampled_ends(
    connection: AsyncConnection, division: Division, partitions: Sequence[Partition], pages: int, most: int
) -> Sequence[Any]:
    """Return the last keys of ranges, from at most so many keys in sampled pages of the table."""
    keyset = division.keyset
    percent = min(100.0, 100 * division.count * _PAGES_PER_RANGE / pages)
    table = tablesample(keyset.table, func.system(percent), name="sampled")
    columns = keyset.over([table.c[part.column.key] for part in keyset.parts]).cursor_columns
    statement = select(*columns).order_by(func.random()).limit(most)
    sample = [keyset.encode(row) for row in await connection.execute(keyset.in_schema(statement))]
    some = range_ends(division, division.keys.where(keyset.one_of()), partitions, _LEAST_KEYS_PER_RANGE, few=True)
    values = {**division.values, **keyset.array_values(sample)}
    found: Sequence[Any] = (await connection.execute(keyset.in_schema(some), values)).all()
    return found


def range_ends(
    division: Division, keys: Select[Any], partitions: Sequence[Partition], size: int, *, few: bool = False
) -> Select[Any]:
    """Return a statement for the last keys of ranges with the same number of rows, in the form of cursors.

    Its rows have the number of the partition as `longhaul_unit`, and that of all rows as `longhaul_total`.

    Args:
        division: What is divided.
        keys: A select of the key's columns, for all rows to divide.
        partitions: The partitions that are divided each for itself; none for all rows together.
        size: The number of rows that a range has at least, but for the only one of a partition.
        few: Whether the keys are so few that they are kept, instead of being read a second time.
    """
    keyset = division.keyset
    read = keys.add_columns(unit_number(partitions).label("longhaul_unit")).order_by(None)
    counted: Any = read.cte("longhaul_keys").prefix_with("MATERIALIZED") if few else read.subquery()
    rows: Any = counted if few else read.subquery()
    in_unit, total = func.count(), cast(func.sum(func.count()).over(), BigInteger)
    share = func.round(cast(division.count * in_unit, Numeric) / total)
    ranges = cast(func.greatest(func.least(share, in_unit // size), 1), BigInteger)
    unit = counted.c.longhaul_unit
    # Materialized, or the division would be made again for each key.
    units = (
        select(unit, in_unit.label("rows"), total.label("total"), ranges.label("ranges"))
        .group_by(unit)
        .cte("longhaul_units")
        .prefix_with("MATERIALIZED")
    )
    columns = list(rows.columns)[: len(keyset.parts)]
    order = keyset.over(columns).order_by()
    number = func.row_number().over(partition_by=rows.c.longhaul_unit, order_by=order).label("longhaul_n")
    numbered = select(*columns, rows.c.longhaul_unit, number).subquery()
    ends = keyset.over(list(numbered.columns)[: len(keyset.parts)])
    return (
        select(*ends.cursor_columns, numbered.c.longhaul_unit, units.c.total.label("longhaul_total"))
        .join(units, units.c.longhaul_unit == numbered.c.longhaul_unit)
        .where((numbered.c.longhaul_n * units.c.ranges) % units.c.rows < units.c.ranges)
        .order_by(numbered.c.longhaul_unit, *ends.order_by())
    )
