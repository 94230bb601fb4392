"""The SQL of bulk operations: one statement for any number of rows, which come as one array a column."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column

from worker.batch.bulk.rows import BulkTarget, Group, array_type, fits_unnest


def _source(target: BulkTarget, group: Group) -> str:
    """Return `unnest($1::t[], ...) AS given (a, b)`, or VALUES for a row at a time."""
    names = ", ".join(target.quoted(group.columns))
    if fits_unnest(group.columns):
        arrays = ", ".join(f"${place}::{array_type(column)}" for place, column in enumerate(group.columns, start=1))
        return f"unnest({arrays}) AS given ({names})"
    values = ", ".join(f"${place}::{array_type(column)[:-2]}" for place, column in enumerate(group.columns, 1))
    return f"(VALUES ({values})) AS given ({names})"


def _changes(target: BulkTarget, sets: list[Column[Any]], source: str, computed: dict[Column[Any], str]) -> str:
    named = [f"{name} = {source}.{name}" for name in target.quoted(sets)]
    made = [f"{name} = {sql}" for name, sql in zip(target.quoted(computed), computed.values(), strict=True)]
    return ", ".join(named + made)


def update_statement(
    target: BulkTarget,
    group: Group,
    key: list[Column[Any]],
    sets: list[Column[Any]],
    computed: dict[Column[Any], str] | None = None,
) -> str:
    """Return `UPDATE ... FROM unnest(...)` for rows of a group, built once for its columns."""
    return target.cached(("update", group.columns, key), _update_sql, group, key, sets, computed or {})


def _update_sql(
    target: BulkTarget, group: Group, key: list[Column[Any]], sets: list[Column[Any]], computed: dict[Column[Any], str]
) -> str:
    changes = _changes(target, sets, "given", computed)
    same = " AND ".join(f"target.{name} = given.{name}" for name in target.quoted(key))
    return f"UPDATE {target.name} AS target SET {changes} FROM {_source(target, group)} WHERE {same}"  # noqa: S608


def upsert_statement(
    target: BulkTarget, group: Group, key: list[Column[Any]], sets: list[Column[Any]], computed: dict[Column[Any], str]
) -> str:
    """Return `INSERT ... ON CONFLICT` for rows of a group, built once for its columns."""
    return target.cached(("upsert", group.columns, key, sets), _upsert_sql, group, key, sets, computed)


def delete_statement(target: BulkTarget, group: Group) -> str:
    """Return `DELETE ... = ANY` for keys, built once for their columns."""
    return target.cached(("delete", group.columns), _delete_sql, group)


def _upsert_sql(
    target: BulkTarget, group: Group, key: list[Column[Any]], sets: list[Column[Any]], computed: dict[Column[Any], str]
) -> str:
    names = ", ".join(target.quoted(group.columns))
    conflict = ", ".join(target.quoted(key))
    changes = _changes(target, sets, "excluded", computed)
    action = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
    return (
        f"INSERT INTO {target.name} ({names}) SELECT {names} FROM {_source(target, group)} "  # noqa: S608
        f"ON CONFLICT ({conflict}) {action}"
    )


def _delete_sql(target: BulkTarget, group: Group) -> str:
    names = target.quoted(group.columns)
    if len(names) == 1:
        return f"DELETE FROM {target.name} WHERE {names[0]} = ANY($1::{array_type(group.columns[0])})"  # noqa: S608
    same = " AND ".join(f"target.{name} = given.{name}" for name in names)
    return f"DELETE FROM {target.name} AS target USING {_source(target, group)} WHERE {same}"  # noqa: S608
