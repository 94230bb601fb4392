"""Whether rows could stay although their children were deleted before them, so that they are deleted together.

`purge` deletes children first, in transactions of their own. A parent would stay without them if its condition no
longer holds when they are gone, or if a trigger keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sqlalchemy import Column, ColumnClause, TableClause, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import Function

from worker.maintenance.target import Target, table_name

#: SQL that reads no table: a star, a number, a quoted text such as `interval '1 day'`.
_CONSTANT = re.compile(r"""\*|[\d.]+|(?:(?:interval|date|time|timestamp|timestamptz) *)?'[^'\\]*'""", re.IGNORECASE)
_NAME = re.compile(r"[\w.]+")
#: The packages of SQLAlchemy's elements and of their bases. The SQL of another class is unknown.
_KNOWN = {"sqlalchemy", "builtins", "typing", "typing_extensions", "abc"}


@dataclass
class _Reads:
    """The names in a condition.

    Attributes:
        unknown: A part whose SQL is unknown; None if there is none.
    """

    tables: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    unknown: str | None = None


@cache
def _query() -> str:
    return files(__package__).joinpath("condition_reads.sql").read_text(encoding="utf-8")


async def find_dependence(
    connection: AsyncConnection, target: Target, condition: Any, children: Sequence[TableClause]
) -> str | None:
    """Return why rows could stay although their children were deleted before them; None if they could not.

    Args:
        connection: A connection.
        target: The table of the rows.
        condition: The condition of the rows, or the attribute that is one.
        children: The tables whose rows are deleted.
    """
    reads = _list_reads(condition)
    if reads.unknown is not None:
        return f"the condition has {reads.unknown}, which may read other tables"
    values = {
        "target": target.name,
        "tables": sorted(reads.tables | {target.name}),
        "columns": sorted(reads.columns),
        "functions": sorted(reads.functions),
        "children": [table_name(each) for each in children],
    }
    found = (await connection.execute(text(_query()), values)).one()
    reasons = {
        "the condition reads {}": found.read_child,
        "the condition reads {}, which may read other tables": found.view,
        "the condition calls {}, which may read other tables": found.function,
        "the condition reads {}, which becomes null or its default when a row is deleted": found.emptied,
        "{} can keep a row of the table from being deleted": found.keeper,
    }
    return next((reason.format(name) for reason, name in reasons.items() if name is not None), None)


def _list_reads(condition: Any) -> _Reads:
    reads = _Reads()
    element = condition.__clause_element__() if hasattr(condition, "__clause_element__") else condition
    for each in visitors.iterate(element):
        if _is_foreign(each) or _is_sql(each):
            reads.unknown = "a text()" if isinstance(each, TextClause) else f"a {type(each).__name__}"
            return reads
        if isinstance(each, TableClause):
            reads.tables.add(table_name(each))
        elif isinstance(each, Column):
            reads.columns.add(each.name)
            if isinstance(each.table, TableClause):
                reads.tables.add(table_name(each.table))
        elif isinstance(each, Function):
            reads.functions.add(each.name)
    return reads


def _is_foreign(element: Any) -> bool:
    """Return whether an element, or a base of its class, is not of SQLAlchemy: its SQL is unknown."""
    return any(base.__module__.partition(".")[0] not in _KNOWN for base in type(element).__mro__)


def _is_sql(element: Any) -> bool:
    """Return whether an element is a piece of SQL that is more than a constant, such as a text()."""
    if isinstance(element, TextClause):  # which may be a table, too
        return not _CONSTANT.fullmatch(element.text)
    if not isinstance(element, ColumnClause) or not element.is_literal:
        return False
    return not _CONSTANT.fullmatch(str(element.name)) and not _NAME.fullmatch(str(element.name))
