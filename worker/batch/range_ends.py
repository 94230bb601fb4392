"""Divides the keys of a walk into ranges with the same number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select

from worker.batch.keyset import Keyset


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


def ends_of(keyset: Keyset, rows: Sequence[Any], last: list[Any]) -> list[list[Any]]:
    """Return the ends of ranges from the rows of `range_ends`: the last one is the last key of the walk."""
    ends = [keyset.encode(row) for row in rows]
    if not ends:
        return [last]
    return [*ends[:-1], last]
