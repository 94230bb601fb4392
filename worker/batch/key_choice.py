"""Rejects selects that cannot be walked by a key, and chooses the key for the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Alias, Label, ScalarSelect, Select, SelectBase, Table, UnaryExpression, inspect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import Over
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Join

from worker.batch.catalog import (
    aggregates,
    ensure_table_exists,
    look_key_up,
    look_types_up,
    returns_sets,
)
from worker.batch.keyset import KeyPart, Keyset, is_of_tables, key_part, underlying_column, walked_tables
from worker.db.statement_internals import SelectClauses, read_select_clauses
from worker.errors import UnsupportedStatement

#: A column that an ORDER BY names by its text.
_TEXT = "textual_label_reference"
_REASONS = {
    "OFFSET": "the walk goes by key, and its place is in the ledger",
    "LIMIT": "set size= for the batch, or where() for a part of the table",
    "DISTINCT": "the rows of a walk are found by their key, and locked: use ctx.stream",
    "GROUP BY": "groups are not rows that could be locked: use ctx.stream",
    "HAVING": "groups are not rows that could be locked: use ctx.stream",
    "an ORDER BY of its own": "the order of the walk is its key: set by=",
    "FOR UPDATE": "the walk locks its rows itself: set lock=",
    "a window function": "it would be computed over the rows of one batch: use ctx.stream",
    "a syntax extension": "its effect on the walk is unknown: use ctx.stream",
}


def check_walkable(statement: Any, *, kind: str) -> None:
    """Raise `UnsupportedStatement`, with the reason, for a select whose rows cannot be found by their key."""
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
    clauses["a window function"] = any(map(_has_window, statement.selected_columns))
    for clause, present in clauses.items():
        if present:
            raise UnsupportedStatement(f"{kind} cannot walk a statement with {clause}: {_REASONS[clause]}")


def resolve_order(statement: Select[Any], *, kind: str) -> Select[Any]:
    """Return a select whose ORDER BY names no column by a text, as `order_by("total")` does.

    Raises:
        UnsupportedStatement: A text names no column of the statement.
    """
    clauses = read_select_clauses(statement).order_by
    if not any(one.__visit_name__ == _TEXT for clause in clauses for one in visitors.iterate(clause)):
        return statement
    columns = statement.selected_columns
    return statement.order_by(None).order_by(*(_resolve(clause, columns, kind) for clause in clauses))


def _resolve(clause: Any, columns: Any, kind: str) -> Any:
    if clause.__visit_name__ == _TEXT:
        found = columns.get(clause.element)
        if found is None:
            raise UnsupportedStatement(f"{kind}: order_by({clause.element!r}) names no column of the statement")
        return found.element if isinstance(found, Label) else found
    if _is_reference(clause):
        return _resolve(clause.element, columns, kind)
    if isinstance(clause, UnaryExpression) and clause.modifier is not None:
        return UnaryExpression(_resolve(clause.element, columns, kind), modifier=clause.modifier)
    return clause


def _has_window(element: Any) -> bool:
    """Return whether an expression has a window function of its own, outside of its subqueries."""
    return any(isinstance(each, Over) for each in _iterate_outside_subqueries(element))


def _iterate_outside_subqueries(element: Any) -> Iterator[Any]:
    """Yield an expression and its parts, without those of its subqueries."""
    yield element
    if not isinstance(element, SelectBase | ScalarSelect):
        for child in element.get_children():
            yield from _iterate_outside_subqueries(child)


def choose_key(statement: Select[Any], by: Any, *, kind: str) -> Keyset:
    """Return the key that a select is walked by: `by`, or the primary key of the first column's table.

    Raises:
        UnsupportedStatement: There is no key, or it belongs to a table that the statement does not select from.
    """
    if by is not None:
        parts = [_make_part(expression, kind) for expression in (by if isinstance(by, list | tuple) else [by])]
        _ensure_one_table(parts, kind)
        tables = walked_tables(statement)
        for part in parts:
            if not is_of_tables(part, tables):
                raise UnsupportedStatement(
                    f"{kind}: by={part.expression} is of {part.column.table}, which the statement does not select from "
                    f"under that name"
                )
        return Keyset(parts, statement)
    first = statement.column_descriptions[0]
    entity = find_entity(statement)
    if entity is not None:
        inspected: Any = inspect(entity)
        mapper = inspected.mapper
        keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        return Keyset([_make_part(getattr(inspected.entity, key), kind) for key in keys], statement)
    column = underlying_column(first["expr"])
    table = getattr(first["expr"], "table", None)
    if column is None or table is None or not list(table.primary_key):
        raise UnsupportedStatement(f"{kind}: this statement has no primary key to walk by: set by=")
    return Keyset([_make_part(part, kind) for part in table.primary_key], statement)


def _ensure_one_table(parts: list[KeyPart], kind: str) -> None:
    """Raise `UnsupportedStatement` for a key of several tables: no unique index can hold it."""
    tables = {str(part.expression.table) for part in parts}
    if len(tables) > 1:
        raise UnsupportedStatement(
            f"{kind}: by= names columns of {' and '.join(sorted(tables))}, and no unique index holds a key of several "
            f"tables: walk by a key of one table"
        )


def find_entity(statement: Select[Any]) -> Any:
    """Return the mapped class or alias that the first column belongs to; None for a plain table."""
    return statement.column_descriptions[0].get("entity")


def _make_part(expression: Any, kind: str) -> KeyPart:
    column = underlying_column(expression)
    if column is None:
        raise UnsupportedStatement(f"{kind}: by={expression} is not a column of a table")
    return key_part(expression, column)


async def find_resume_key(connection: AsyncConnection, statement: Select[Any]) -> tuple[Keyset | None, str]:
    """Return the key behind which a stream can continue after a restart, or None and the reason."""
    clauses = read_select_clauses(statement)
    problem = _find_shape_problem(statement, clauses)
    if problem:
        return None, problem
    expressions = [
        getattr(clause, "element", clause) if _is_reference(clause) else clause for clause in clauses.order_by
    ]
    parts = []
    for expression in expressions:
        column = underlying_column(expression)
        if column is None:
            return None, f"it is ordered by {expression}, which is not a column of a table"
        try:
            parts.append(key_part(expression, column))
        except UnsupportedStatement as error:
            return None, str(error)
    keyset = Keyset(parts, statement)
    problem = await _find_source_problem(connection, statement, clauses, parts)
    if problem:
        await ensure_table_exists(connection, keyset, kind="stream")
        return None, problem
    if clauses.group_by:
        found = await look_types_up(connection, keyset)
    else:
        found = await look_key_up(connection, keyset, kind="stream", with_children=False)
    return (None, found) if isinstance(found, str) else (found, "")


async def find_selection_problem(connection: AsyncConnection, statement: Select[Any]) -> str | None:
    """Return the reason why a condition on the rows of a select changes its results; None if it only chooses them."""
    clauses = read_select_clauses(statement)
    columns = [*statement.selected_columns, *clauses.order_by]
    elements = [element for column in columns for element in _iterate_outside_subqueries(column)]
    functions = [str(getattr(element, "name", "")) for element in elements if isinstance(element, FunctionElement)]
    found = {
        "GROUP BY": bool(clauses.group_by),
        "HAVING": clauses.having,
        "DISTINCT": clauses.distinct,
        "LIMIT or OFFSET": clauses.limit or clauses.offset,
        "a syntax extension": clauses.extended,
        "a window function": any(isinstance(element, Over) for element in elements),
        "an aggregate": bool(functions) and await aggregates(connection, functions),
    }
    return next((clause for clause, present in found.items() if present), None)


async def _find_source_problem(
    connection: AsyncConnection, statement: Select[Any], clauses: SelectClauses, parts: list[KeyPart]
) -> str | None:
    """Return the reason why several rows of the statement can have one key, or why the key cannot be compared."""
    sources = walked_tables(statement)
    for part in parts:
        if not is_of_tables(part, sources):
            return f"it is ordered by {part.expression}, which is not a column of its tables"
    if clauses.group_by:
        return _find_group_problem(statement, clauses, parts)
    if len(sources) != 1 or not _is_plain(sources[0]):
        return "it reads more than one plain table, and rows of one key can be repeated"
    functions = [str(getattr(element, "name", "")) for element in _list_functions(statement)]
    if functions and await returns_sets(connection, functions):
        return "it has a function that returns several rows, which have one key"
    return None


def _find_shape_problem(statement: Select[Any], clauses: SelectClauses) -> str | None:
    if not clauses.order_by:
        return "it has no ORDER BY"
    if clauses.limit or clauses.offset:
        return "it has a LIMIT or OFFSET"
    if clauses.distinct:
        return "it has a DISTINCT"
    if clauses.extended:
        return "it has a syntax extension, such as distinct_on()"
    if any(isinstance(element, Over) for element in visitors.iterate(statement)):
        return "it has window functions"
    return None


def _find_group_problem(statement: Select[Any], clauses: SelectClauses, parts: list[KeyPart]) -> str | None:
    grouped = [underlying_column(clause) for clause in clauses.group_by]
    if not set(grouped) <= {part.column for part in parts}:
        return "its order does not hold all columns of its GROUP BY"
    nullable = [part.column.name for part in parts if part.column.nullable]
    if nullable:
        return f"{', '.join(nullable)} can be null, and the rows after a null cannot be found"
    if len(parts) != len(grouped):
        return "its order holds more than the columns of its GROUP BY"
    if any(isinstance(element, Join) and (element.isouter or element.full) for element in _list_sources(statement)):
        return "it has an outer join, and its groups can be of null"
    return None


def _is_reference(clause: Any) -> bool:
    return str(getattr(clause, "__visit_name__", "")).endswith("label_reference")


def _is_plain(source: Any) -> bool:
    return isinstance(source, Table) or (isinstance(source, Alias) and isinstance(source.element, Table))


def _list_sources(statement: Select[Any]) -> list[Any]:
    return [element for source in statement.get_final_froms() for element in visitors.iterate(source)]


def _list_functions(statement: Select[Any]) -> list[FunctionElement[Any]]:
    found = [element for column in statement.selected_columns for element in visitors.iterate(column)]
    return [element for element in found if isinstance(element, FunctionElement)]
