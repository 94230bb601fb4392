"""The partitions of a table whose walk is divided: each has ranges of its own, so that a hand reads one partition.

A range belongs to the keys that a partition's constraint admits, and not to the rows that it holds: a row that is moved
to another partition by a change of the partitions, and keeps its key, stays in its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Integer, Select, Table, case, literal_column, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.selectable import Alias

from worker.batch.catalog import table_name
from worker.batch.keyset import Keyset, walked_tables

# The planner cannot exclude the partitions of a hash: they share ranges over all of them, and are one unit here.
_UNITS = text("""
WITH RECURSIVE tree AS (
    SELECT partrelid AS relation, CASE WHEN partstrat = 'h' THEN partrelid END AS unit
      FROM pg_catalog.pg_partitioned_table
     WHERE partrelid = pg_catalog.to_regclass(CAST(:table AS text))
    UNION ALL
    SELECT inhrelid, coalesce(unit, CASE WHEN partstrat IS NULL OR partstrat = 'h' THEN inhrelid END)
      FROM tree
      JOIN pg_catalog.pg_inherits ON inhparent = relation
      LEFT JOIN pg_catalog.pg_partitioned_table ON partrelid = inhrelid
)
SELECT unit::int8 AS id, unit::regclass::text AS name,
       coalesce(pg_catalog.pg_get_partition_constraintdef(unit), 'true') AS condition,
       pg_catalog.array_agg(relation::int8) FILTER (WHERE relation <> unit) AS below
  FROM tree
 WHERE unit IS NOT NULL
 GROUP BY unit
 ORDER BY unit
""")


@dataclass(frozen=True)
class Partition:
    """A partition with ranges of its own.

    Attributes:
        id: Its number in the catalog.
        name: Its name, in SQL.
        condition: Its constraint, in SQL, with plain names of columns.
        below: The numbers of the partitions that it consists of, if it is divided by a hash.
    """

    id: int
    name: str
    condition: str
    below: tuple[int, ...] = ()


def names_one_table(statement: Select[Any]) -> bool:
    """Return whether a select reads one table, so that a plain name of a column is unambiguous."""
    tables = walked_tables(statement)
    return len(tables) == 1 and all(
        isinstance(table, Table) or (isinstance(table, Alias) and isinstance(table.element, Table)) for table in tables
    )


def has_all_rows(statement: Select[Any], text: str) -> bool:
    """Return whether a select has each row of the one table that it reads.

    Args:
        statement: The select.
        text: The select as SQL, with the conditions that the mapping of a class adds.
    """
    return names_one_table(statement) and statement.whereclause is None and " WHERE " not in text


async def list_partitions(connection: AsyncConnection, keyset: Keyset) -> list[Partition]:
    """Return the partitions of the key's table, among which a walk is divided; none if there are fewer than two."""
    found = [
        Partition(row.id, row.name, row.condition, tuple(row.below or ()))
        for row in await connection.execute(_UNITS, {"table": table_name(keyset)})
    ]
    return found if len(found) > 1 else []


def within(condition: str | None) -> list[ColumnElement[bool]]:
    """Return the condition of a partition, for a WHERE; none for the whole table."""
    return [] if condition is None else [literal_column(f"({condition})", Boolean)]


def unit_number(partitions: Sequence[Partition]) -> ColumnElement[int]:
    """Return the number of the partition that a row of a select belongs to; 0 without partitions."""
    if not partitions:
        return literal_column("0", Integer)
    held: ColumnElement[int] = literal_column("tableoid::int8", Integer)
    divided = [(held.in_(one.below), literal_column(str(one.id), Integer)) for one in partitions if one.below]
    return case(*divided, else_=held) if divided else held
