"""The SQL of the fast paths: one statement for any number of rows, which are sent as an array for each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column

from worker.batch.bulk.target import BulkTarget

Columns = Sequence[Column[Any]]


def insert_statement(target: BulkTarget, casts: Mapping[Column[Any], str]) -> str:
    """Return `INSERT ... SELECT ... FROM unnest(...)`."""
    return target.cached(("insert", tuple(casts.items())), lambda: _insert(target, casts))


def update_statement(
    target: BulkTarget,
    casts: Mapping[Column[Any], str],
    key: Columns,
    sets: Columns,
    expressions: Mapping[Column[Any], str],
) -> str:
    """Return `UPDATE ... FROM unnest(...)`.

    Args:
        target: the table.
        casts: the columns to send, with the types of their arrays.
        key: the columns that identify a row.
        sets: the columns that get the sent values.
        expressions: the columns that get the value of an SQL expression.
    """

    def build() -> str:
        changes = _changes(target, sets, "given", expressions)
        same = " AND ".join(f"target.{name} = given.{name}" for name in target.quoted(key))
        return f"UPDATE {target.name} AS target SET {changes} FROM {_source(target, casts)} WHERE {same}"  # noqa: S608

    return target.cached(("update", tuple(casts.items()), tuple(key), tuple(expressions)), build)


def upsert_statement(
    target: BulkTarget,
    casts: Mapping[Column[Any], str],
    key: Columns,
    sets: Columns,
    expressions: Mapping[Column[Any], str],
) -> str:
    """Return `INSERT ... SELECT ... FROM unnest(...) ON CONFLICT`; the arguments are those of `update_statement`."""

    def build() -> str:
        changes = _changes(target, sets, "excluded", expressions)
        conflict = ", ".join(target.quoted(key))
        action = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
        return f"{_insert(target, casts)} ON CONFLICT ({conflict}) {action}"

    return target.cached(("upsert", tuple(casts.items()), tuple(key), tuple(sets), tuple(expressions)), build)


def delete_statement(target: BulkTarget, casts: Mapping[Column[Any], str]) -> str:
    """Return `DELETE ... = ANY` for the values of a key, or `DELETE ... USING unnest(...)` for a key of several
    columns."""

    def build() -> str:
        names = target.quoted(casts)
        if len(names) == 1:
            return f"DELETE FROM {target.name} WHERE {names[0]} = ANY($1::{next(iter(casts.values()))})"  # noqa: S608
        same = " AND ".join(f"target.{name} = given.{name}" for name in names)
        return f"DELETE FROM {target.name} AS target USING {_source(target, casts)} WHERE {same}"  # noqa: S608

    return target.cached(("delete", tuple(casts.items())), build)


def _insert(target: BulkTarget, casts: Mapping[Column[Any], str]) -> str:
    names = ", ".join(target.quoted(casts))
    return f"INSERT INTO {target.name} ({names}) SELECT {names} FROM {_source(target, casts)}"  # noqa: S608


def _source(target: BulkTarget, casts: Mapping[Column[Any], str]) -> str:
    # One array for each call: pg_catalog.unnest() takes only one, and an unqualified unnest() may be shadowed.
    arrays = ", ".join(f"pg_catalog.unnest(${place}::{cast})" for place, cast in enumerate(casts.values(), start=1))
    return f"ROWS FROM ({arrays}) AS given ({', '.join(target.quoted(casts))})"


def _changes(target: BulkTarget, sets: Columns, source: str, expressions: Mapping[Column[Any], str]) -> str:
    named = [f"{name} = {source}.{name}" for name in target.quoted(sets)]
    made = [f"{name} = {sql}" for name, sql in zip(target.quoted(expressions), expressions.values(), strict=True)]
    return ", ".join(named + made)
