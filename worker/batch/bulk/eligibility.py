"""Decides which operations may use a fast path: COPY, or arrays through `unnest()`.

A fast path is used only if it writes the same values as SQLAlchemy. Column type, table and values decide this, from
the explicit lists in this module; tests/batch/test_equality.py compares the paths for every type. Everything else
is written by SQLAlchemy's own statement for each row (`worker.batch.bulk.row_by_row`).

SQLAlchemy writes a value as `$1::T`, where `T` is the type as SQLAlchemy renders it in a cast:

- An array `$1::T[]` holds the same values if the driver encodes an element of it as it encodes the value alone.
- COPY sends each value in the binary form of the column's type in the database. It is equal if that type is `T`, and
  if the cast to `T` changes nothing that the assignment to the column does not change as well.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Enum, bindparam
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter, ColumnClause
from sqlalchemy.types import TypeDecorator, TypeEngine

from worker.batch.bulk.rows import Group
from worker.batch.bulk.target import DIALECT, BulkTarget

_CAST = re.compile(r"\$1(?:::(?P<type>[^:]+))?")
_ARGUMENTS = re.compile(r"\s*\([^)]*\)")
#: As format_type() spells them, by SQLAlchemy's name.
_SERVER_NAMES = {
    "VARCHAR": ("text", "character varying", "character"),
    "FLOAT": ("double precision",),
    "BIT VARYING": ("bit varying",),
}
_SCALARS = frozenset(
    {
        *("INTEGER", "SMALLINT", "BIGINT", "BOOLEAN", "VARCHAR", "UUID", "DATE", "BYTEA", "JSON", "JSONB"),
        *("TIMESTAMP WITHOUT TIME ZONE", "TIMESTAMP WITH TIME ZONE", "TIME WITHOUT TIME ZONE", "TIME WITH TIME ZONE"),
        *("INTERVAL", "NUMERIC", "FLOAT"),
        *("INT4RANGE", "INT8RANGE", "NUMRANGE", "DATERANGE", "TSRANGE", "TSTZRANGE"),
    }
)
#: Types whose explicit cast with a length or precision is the same function as an assignment.
_SIZED = frozenset({"NUMERIC", "INTERVAL"})
_COPY_ONLY = frozenset({"BIT VARYING"})
#: Types of which two values are equal in Python exactly if they are equal in the database.
_KEYS = frozenset(
    {
        *("INTEGER", "SMALLINT", "BIGINT", "BOOLEAN", "VARCHAR", "UUID", "DATE"),
        *("TIMESTAMP WITHOUT TIME ZONE", "TIMESTAMP WITH TIME ZONE"),
    }
)
#: Types of which that holds for values of these Python types alone: a bytearray is compared by content but has no hash,
#: 0.1 and Decimal("0.1") differ in Python, and so do a large integer and its float. NaN differs from itself.
_KEYS_BY_VALUE: dict[str, frozenset[type]] = {
    "BYTEA": frozenset({bytes}),
    "NUMERIC": frozenset({Decimal, int}),
    "FLOAT": frozenset({float}),
}
_NUMERIC = re.compile(r"NUMERIC\((?P<precision>\d+), (?P<scale>-?\d+)\)")
#: Containers, which the driver reads as dimensions of an array.
_NESTED = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class TableFacts:
    """The catalog's description of a table.

    Attributes:
        is_table: whether it is a plain or partitioned table without rules; false for views and foreign tables.
        has_parts: whether it is partitioned or has children.
        is_secured: whether row-level security applies to the current role.
        has_update_triggers: whether an UPDATE of it fires a trigger of the application.
        types: the type of each column, as `format_type()` returns it.
        generated: columns that the server alone may write.
        defaulted: columns that have a default in the database.
        unordered: text columns with a nondeterministic collation: different values can be equal.
        unique: columns of unique indexes and exclusion constraints; None if an index has expressions or a predicate.
    """

    is_table: bool
    has_parts: bool
    is_secured: bool
    has_update_triggers: bool
    types: dict[str, str]
    generated: frozenset[str]
    defaulted: frozenset[str]
    unordered: frozenset[str]
    unique: frozenset[str] | None


_FACTS_SECONDS = 30.0

_FACTS = """
SELECT c.relkind IN ('r', 'p') AND NOT c.relhasrules AS is_table,
       c.relkind = 'p' OR c.relhassubclass AS has_parts,
       pg_catalog.row_security_active(c.oid) AS is_secured,
       EXISTS (SELECT FROM pg_catalog.pg_trigger AS t
                WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND (t.tgtype::int & 16) <> 0) AS has_update_triggers,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS names,
       ARRAY(SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS types,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND (a.attidentity = 'a' OR a.attgenerated <> '')) AS generated,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND (a.atthasdef OR a.attidentity <> '')) AS defaulted,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
               JOIN pg_catalog.pg_collation AS l ON l.oid = a.attcollation
              WHERE a.attrelid = c.oid AND NOT l.collisdeterministic) AS unordered,
       ARRAY(SELECT DISTINCT a.attname::text FROM pg_catalog.pg_index AS i
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
              WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)) AS unique_columns,
       EXISTS (SELECT FROM pg_catalog.pg_index AS i
                WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)
                  AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)) AS unique_expressions
  FROM pg_catalog.pg_class AS c
 WHERE c.oid = pg_catalog.to_regclass($1)
"""


async def read_facts(raw: Any, known: dict[Any, Any], target: BulkTarget) -> TableFacts | None:
    """Return the catalog's description of a table, read again on a connection after some seconds.

    A trigger, index or policy that is created while a worker runs takes effect at the next read.

    Args:
        raw: asyncpg's connection.
        known: values cached with the connection: SQLAlchemy's `info`.
        target: the table.

    Returns:
        None if the table does not exist.
    """
    facts: dict[str, tuple[float, TableFacts]] = known.setdefault("table_facts", {})
    if target.name not in facts or time.monotonic() - facts[target.name][0] > _FACTS_SECONDS:
        row = await raw.fetchrow(_FACTS, target.name)
        if row is None:
            return None
        found = TableFacts(
            row["is_table"],
            row["has_parts"],
            row["is_secured"],
            row["has_update_triggers"],
            dict(zip(row["names"], row["types"], strict=True)),
            frozenset(row["generated"]),
            frozenset(row["defaulted"]),
            frozenset(row["unordered"]),
            None if row["unique_expressions"] else frozenset(row["unique_columns"]),
        )
        facts[target.name] = time.monotonic(), found
    return facts[target.name][1]


def forget_facts(known: dict[Any, Any]) -> None:
    """Forget the result of `read_facts` for a connection: a table has been altered since."""
    known.pop("table_facts", None)


@lru_cache(maxsize=4096)
def rendered_cast(type_: TypeEngine[Any]) -> str | None:
    """Return the type in the cast of `$1::T` as SQLAlchemy renders it, "" for none, and None for any other
    expression."""
    parameter = bindparam("value", type_=type_)
    if type_.bind_expression(parameter) is not None:
        return None
    try:
        rendered = str(parameter.compile(dialect=DIALECT))
    except CompileError:
        return None
    found = _CAST.fullmatch(rendered)
    if found is None or " COLLATE " in (found["type"] or ""):
        return None
    return found["type"] or ""


def array_cast(column: Column[Any], facts: TableFacts) -> str | None:
    """Return the type of an array of the column's values, as a cast in SQL; None if values must be sent alone."""
    cast = rendered_cast(column.type)
    if cast is None:
        return None
    if not cast:
        # SQLAlchemy renders no cast: the server takes the column's own type.
        found = _ARGUMENTS.sub("", facts.types.get(column.name, ""))
        return f"{found}[]" if found in ("text", "character varying") else None
    if _ARGUMENTS.sub("", cast).split(" DAY")[0] in _SCALARS or _is_enum(column.type):
        return f"{cast}[]"
    return None


def are_copyable(columns: Iterable[Column[Any]], facts: TableFacts) -> bool:
    """Return whether COPY writes the same values of these columns as SQLAlchemy."""
    return (
        facts.is_table
        and not facts.is_secured
        and all(_is_copyable(column, facts.types.get(column.name)) for column in columns)
        and not any(column.name in facts.generated for column in columns)
    )


def _is_copyable(column: Column[Any], server: str | None) -> bool:
    cast = rendered_cast(column.type)
    if cast is None or server is None:
        return False
    if not cast:
        return _ARGUMENTS.sub("", server) in ("text", "character varying")
    if _is_enum(column.type):
        return cast == server
    scalar = cast.rstrip("[]") if cast.endswith("[]") else cast
    if scalar != cast:
        if not server.endswith("[]"):
            return False
        server = server.removesuffix("[]")
    name = _ARGUMENTS.sub("", scalar)
    if name != scalar:
        # The cast has a length or precision of its own: it is harmless only if the column has the same.
        return scalar == cast and name in _SIZED and _squeezed(scalar) == _squeezed(server)
    return name in _SCALARS | _COPY_ONLY and _ARGUMENTS.sub("", server) in _SERVER_NAMES.get(name, (name.lower(),))


def are_keys(columns: Iterable[Column[Any]], facts: TableFacts, group: Group | None = None) -> bool:
    """Return whether two keys of these columns are equal in Python exactly if the database finds them equal.

    Args:
        columns: the columns of the key.
        facts: the table.
        group: the rows; None if their values are not known, so that only types that need none are keys.
    """
    return all(
        (cast := rendered_cast(column.type)) is not None
        and (cast in _KEYS or _is_enum(column.type) or (group is not None and _are_exact(cast, group.of(column))))
        and column.name not in facts.unordered
        and _ARGUMENTS.sub("", facts.types.get(column.name, ""))
        in _SERVER_NAMES.get(cast, (_ARGUMENTS.sub("", cast).lower(), cast))
        and not facts.types[column.name].startswith(("character(", "bpchar"))
        and not isinstance(column.type, TypeDecorator)
        for column in columns
    )


def _are_exact(cast: str, values: Sequence[Any]) -> bool:
    """Return whether values of a type are keys, because the cast to it leaves them as they are."""
    sized = _NUMERIC.fullmatch(cast)
    types = set(map(type, values))
    if not types <= _KEYS_BY_VALUE.get("NUMERIC" if sized else cast, frozenset()) or not types:
        return False
    if types <= {float}:
        return all(map(math.isfinite, values))
    if Decimal not in types:
        return True
    scale = None if sized is None else int(sized["scale"])
    exponents = [value.as_tuple().exponent for value in values if type(value) is Decimal]
    return all(isinstance(each, int) and (scale is None or each >= -scale) for each in exponents)


def are_flat(arrays: Sequence[Sequence[Any]]) -> bool:
    """Return whether no value is a container."""
    return not any(has_containers(set(map(type, array))) for array in arrays)


def has_containers(types: Iterable[type]) -> bool:
    """Return whether one of the types of an array's values is a container."""
    return any(issubclass(type_, _NESTED) for type_ in types)


def none_is_left_out(target: BulkTarget, group: Group, facts: TableFacts) -> bool:
    """Return whether the ORM writes another value than the row gives: its INSERT omits a column whose value is None.

    The column then gets its default, and a type of the application does not process the value.
    """
    if target.mapper is None:
        return False
    return any(
        not column.type.should_evaluate_none
        and (column.primary_key or column.name in facts.defaulted or _has_default(column) or _converts_none(column))
        and type(None) in set(map(type, values))
        for column, values in zip(group.columns, group.values, strict=True)
    )


def needs_context(target: BulkTarget, kind: str, given: Iterable[Column[Any]]) -> bool:
    """Return whether SQLAlchemy must make a column's default when it executes the statement.

    This applies to SQL expressions and sequences in an INSERT, and to functions that take the context of the execution.

    Args:
        target: the table.
        kind: "default" or "onupdate".
        given: the columns that the rows name.
    """
    named = set(given)
    return any(
        default is not None and not default.is_scalar and not (default.is_callable and _takes_nothing(default.arg))
        for column in target.table.columns
        if column not in named and (default := getattr(column, kind)) is not None
    )


def update_expressions(target: BulkTarget, given: Iterable[Column[Any]]) -> dict[Column[Any], str] | None:
    """Return the SQL of each `onupdate` expression, e.g. `now()`, of columns that the rows do not name.

    Returns:
        None if one of them holds values or names of columns, which only SQLAlchemy's own statement can place.
    """
    named = set(given)
    found: dict[Column[Any], str] = {}
    for column in target.table.columns:
        default: Any = column.onupdate
        if default is None or not default.is_clause_element or column in named:
            continue
        if any(isinstance(part, BindParameter | ColumnClause) for part in visitors.iterate(default.arg)):
            return None
        found[column] = str(default.arg.compile(dialect=DIALECT))
    return found


def _has_default(column: Column[Any]) -> bool:
    return column.default is not None or column.server_default is not None


def _converts_none(column: Column[Any]) -> bool:
    process = column.type.dialect_impl(DIALECT).bind_processor(DIALECT)
    try:
        return process is not None and process(None) is not None
    except Exception:  # noqa: BLE001 - a type of the application can raise anything
        return True


def _is_enum(type_: TypeEngine[Any]) -> bool:
    if isinstance(type_, TypeDecorator):
        return _is_enum(type_.load_dialect_impl(DIALECT))
    return isinstance(type_, Enum) and bool(rendered_cast(type_)) and type_.native_enum


def _takes_nothing(default: Any) -> bool:
    """Return whether SQLAlchemy has wrapped a function without arguments to take its context."""
    return str(getattr(default, "__globals__", {}).get("__name__", "")) == "sqlalchemy.sql.schema"


def _squeezed(type_: str) -> str:
    return re.sub(r"\s*([(),])\s*", r"\1", type_).lower()
