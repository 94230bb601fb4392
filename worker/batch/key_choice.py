"""Which selects can be walked by a key, and by which."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, inspect

from worker.batch.keyset import KeyPart, Keyset, key_part, selects_from, underlying_column
from worker.db.statement_internals import read_select_clauses
from worker.errors import UnsupportedStatement


def refuse_unwalkable(statement: Any, *, kind: str) -> None:
    """Raise `UnsupportedStatement`, with the reason, for a select whose rows cannot be told by their key."""
    if not isinstance(statement, Select):
        raise UnsupportedStatement(
            f"{kind} takes a select() of an entity or of columns, not {type(statement).__name__}"
        )
    found = read_select_clauses(statement)
    clauses = {
        "OFFSET": found.offset,
        "LIMIT": found.limit,
        "DISTINCT": found.distinct,
        "GROUP BY": bool(found.group_by),
        "HAVING": found.having,
        "an ORDER BY of its own": bool(found.order_by),
        "FOR UPDATE": found.for_update,
        "a syntax extension": found.extended,
    }
    reasons = {
        "OFFSET": "the walk goes by key, and has its place in the ledger",
        "LIMIT": "say size= for the batch, or where() for the part of the table",
        "DISTINCT": "the rows of a walk are told by their key, and locked: use ctx.stream",
        "GROUP BY": "groups are no rows that could be locked: use ctx.stream",
        "HAVING": "groups are no rows that could be locked: use ctx.stream",
        "an ORDER BY of its own": "the walk's order is its key: say by=",
        "FOR UPDATE": "the walk locks its rows itself: set lock=",
        "a syntax extension": "its effect on the walk is unknown: use ctx.stream",
    }
    for clause, present in clauses.items():
        if present:
            raise UnsupportedStatement(f"{kind} cannot walk a statement with {clause}: {reasons[clause]}")


def key_of_select(statement: Select[Any], by: Any, *, kind: str) -> Keyset:
    """Return the key that a select is walked by: `by`, or the primary key of what its first column is of.

    Raises:
        UnsupportedStatement: there is none, or it is of a table that is not selected from.
    """
    if by is not None:
        parts = [_part(expression, kind) for expression in (by if isinstance(by, list | tuple) else [by])]
        for part in parts:
            if not selects_from(statement, part):
                raise UnsupportedStatement(
                    f"{kind}: by={part.expression} is of {part.column.table}, which the statement does not select from "
                    f"under that name"
                )
        return Keyset(parts)
    first = statement.column_descriptions[0]
    entity = entity_of(statement)
    if entity is not None:
        inspected: Any = inspect(entity)
        mapper = inspected.mapper
        keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        return Keyset([_part(getattr(inspected.entity, key), kind) for key in keys])
    column = underlying_column(first["expr"])
    table = getattr(first["expr"], "table", None)
    if column is None or table is None or not list(table.primary_key):
        raise UnsupportedStatement(f"{kind}: no primary key to walk by is found in this statement: say by=")
    return Keyset([_part(part, kind) for part in table.primary_key])


def _part(expression: Any, kind: str) -> KeyPart:
    column = underlying_column(expression)
    if column is None:
        raise UnsupportedStatement(f"{kind}: by={expression} is no column of a table")
    return key_part(expression, column)


def entity_of(statement: Select[Any]) -> Any:
    """Return the mapped class or alias that the first column is of; None for one of a plain table."""
    return statement.column_descriptions[0].get("entity")
