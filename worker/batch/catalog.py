"""Looks keys up in the database's catalog: whether they are unique and not null, and how many rows there are."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Enum, Executable, LargeBinary, Select, String, Text, cast, func, inspect, select, text
from sqlalchemy.dialects.postgresql import dialect as postgresql_dialect
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

from worker.batch.compiled import CompiledStatement
from worker.batch.keyset import KeyPart, Keyset, underlying_column
from worker.db.collations import find_changed_collations
from worker.errors import UnsupportedStatement

_DIALECT = postgresql_dialect()  # type: ignore[no-untyped-call]
#: The preparer of asyncpg's dialect: others double a % in a name.
_PREPARER = asyncpg_dialect().identifier_preparer  # type: ignore[no-untyped-call]

logger = logging.getLogger("longhaul.batch")

_WEIGHED_ROWS = 100
#: Bytes that Python adds to each value.
_VALUE_BYTES = 50

_KEY = text("""
SELECT (SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = relation) AS kind,
       coalesce((SELECT pg_catalog.array_agg(attname::text) FROM pg_catalog.pg_attribute
                  WHERE attrelid = relation AND attname = ANY(wanted) AND NOT attnotnull), '{}') AS nullable,
       EXISTS (SELECT FROM pg_catalog.pg_attribute
                WHERE attrelid = relation AND attname = ANY(wanted) AND attcollation <> 0) AS has_texts,
       coalesce((SELECT pg_catalog.jsonb_object_agg(attname, pg_catalog.format_type(atttypid, NULL))
                   FROM pg_catalog.pg_attribute
                  WHERE attrelid = relation AND attname = ANY(wanted) AND NOT attisdropped), '{}') AS types,
       (SELECT pg_catalog.bool_or(NOT EXISTS (
                 SELECT FROM pg_catalog.generate_series(0, indnkeyatts - 1) AS place
                   JOIN pg_catalog.pg_attribute ON attrelid = relation AND attnum = indkey[place]
                  WHERE indcollation[place] NOT IN (0, attcollation)))
          FROM pg_catalog.pg_index
         WHERE indrelid = relation AND indisunique AND indisvalid AND indpred IS NULL
           AND NOT 0 = ANY(indkey[0:indnkeyatts - 1])
           AND (SELECT pg_catalog.array_agg(attname::text) FROM pg_catalog.pg_attribute
                 WHERE attrelid = relation AND attnum = ANY(indkey[0:indnkeyatts - 1])) <@ wanted) AS unique_and_sorted,
       EXISTS (SELECT FROM pg_catalog.pg_inherits JOIN pg_catalog.pg_class ON pg_class.oid = inhparent
                WHERE inhparent = relation AND relkind <> 'p') AS has_children
  FROM (SELECT pg_catalog.to_regclass(CAST(:table AS text)) AS relation, CAST(:columns AS text[]) AS wanted) AS named
 WHERE relation IS NOT NULL
""")


#: Relations without constraints, by `pg_class.relkind`.
_NO_TABLES = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
_NO_KEY = "for which PostgreSQL enforces no unique, not-null key"

_CHILDREN = text("""
SELECT conrelid::regclass::text AS name, confdeltype = 'c' AS cascades, confdeltype IN ('n', 'd') AS updates,
       (SELECT pg_catalog.array_agg(attname::text ORDER BY place)
          FROM pg_catalog.unnest(conkey) WITH ORDINALITY AS key (number, place)
          JOIN pg_catalog.pg_attribute ON attrelid = conrelid AND attnum = number) AS columns,
       EXISTS (SELECT FROM pg_catalog.pg_index
                WHERE indrelid = conrelid AND indisvalid AND indpred IS NULL
                  AND conkey <@ (indkey::int2[])[0:pg_catalog.cardinality(conkey) - 1]) AS is_indexed
  FROM pg_catalog.pg_constraint
 WHERE contype = 'f' AND conparentid = 0 AND confrelid IN (  -- also those to the table of a partition, or to one
       SELECT pg_catalog.to_regclass(CAST(:table AS text))
        UNION SELECT relid FROM pg_catalog.pg_partition_ancestors(pg_catalog.to_regclass(CAST(:table AS text)))
                         AS above (relid)
        UNION SELECT relid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(CAST(:table AS text))))
 ORDER BY 1, 4
""")


@dataclass(frozen=True)
class Child:
    """A foreign key to a table.

    Attributes:
        table: The table that has the foreign key, in SQL.
        columns: Its columns, in SQL.
        cascades: Whether a deleted parent deletes its rows (ON DELETE CASCADE).
        updates: Whether a deleted parent updates its rows (ON DELETE SET NULL or SET DEFAULT).
        is_indexed: Whether an index finds the rows of a parent.
    """

    table: str
    columns: str
    cascades: bool
    updates: bool
    is_indexed: bool

    @property
    def cure(self) -> str:
        """The statement that creates the missing index."""
        return f"CREATE INDEX CONCURRENTLY ON {self.table} ({self.columns})"


async def _ensure_order_is_current(
    connection: AsyncConnection, table: str, columns: Sequence[str], *, kind: str
) -> None:
    """Raise `UnsupportedStatement` if indexes on texts of a key may have the order of an old collation."""
    changed = await find_changed_collations(connection, table=table, columns=columns)
    if changed:
        raise UnsupportedStatement(
            f"{kind}: {table} ({', '.join(columns)}) is walked in the order of its texts, and {'; '.join(changed)}. "
            f"Until then, a walk could omit rows. Then retry the run, or walk by a key without texts: by=..."
        )


async def ensure_key_orders(connection: AsyncConnection, keyset: Keyset, *, kind: str, vouched: bool = False) -> Keyset:
    """Return the key with the types of its columns.

    The database decides, not the model: only an enforced constraint ensures that the walk omits no row.

    Raises:
        UnsupportedStatement: The key is not unique, or can be null.
    """
    typed = await look_key_up(connection, keyset, kind=kind, vouched=vouched)
    if isinstance(typed, str):
        cure = "walk by a unique, not-null key: by=..."
        if typed.endswith(_NO_KEY):
            cure = (
                "walk the table that it reads, with its conditions in where(), or read it with ctx.stream(..., "
                "on_restart='start_over')"
            )
            if kind == "chunks":
                cure += ", or set unique=True if by= names columns that are unique and not null in it"
        raise UnsupportedStatement(f"{kind}: {typed}; {cure}")
    return typed


async def ensure_table_exists(connection: AsyncConnection, keyset: Keyset, *, kind: str) -> None:
    """Raise `UnsupportedStatement` if the key's table is not in the database."""
    table = table_name(keyset)
    if await connection.scalar(text("SELECT pg_catalog.to_regclass(CAST(:table AS text))"), {"table": table}) is None:
        raise _no_table(table, kind)


def _no_table(table: str, kind: str) -> UnsupportedStatement:
    return UnsupportedStatement(
        f"{kind}: there is no table {table} in the database: create it with your own migrations (`worker migrate` "
        f"creates only the ledger's tables), or correct the URL of the database"
    )


async def look_key_up(
    connection: AsyncConnection, keyset: Keyset, *, kind: str, vouched: bool = False, with_children: bool = True
) -> Keyset | str:
    """Return the key with the types of its columns, or the reason why it cannot order a walk.

    Args:
        connection: A connection.
        keyset: The key.
        kind: The kind of the walk, for errors.
        vouched: Whether the job vouches for the key of a relation that cannot have a constraint.
        with_children: Whether other tables may inherit from the table: an index holds each of them alone, so keys can
            be repeated.

    Raises:
        UnsupportedStatement: The key's table is not in the database.
    """
    table = table_name(keyset)
    columns = [part.column.name for part in keyset.parts]
    shown = ", ".join(columns)
    found = (await connection.execute(_KEY, {"table": table, "columns": columns})).one_or_none()
    if found is None:
        raise _no_table(table, kind)
    if found.has_children and not with_children:
        return f"other tables inherit from {table}, so that several rows can have one key"
    is_vouched = vouched and found.kind in _NO_TABLES
    if found.kind in _NO_TABLES and not is_vouched:
        return f"{table} is {_NO_TABLES[found.kind]}, {_NO_KEY}"
    missing = [column for column in columns if column not in found.types]
    if found.has_texts:
        await _ensure_order_is_current(connection, table, columns, kind=kind)
    if missing:
        return f"table {table} has no column {', '.join(missing)}"
    if is_vouched:
        return _find_padded(keyset, found.types) or keyset.typed(found.types)
    if found.nullable:
        return f"{table} ({', '.join(found.nullable)}) can be null, and a walk would skip those rows"
    if found.unique_and_sorted is False:
        return (
            f"the unique index of {table} on ({shown}) has another collation than its column: it cannot find the "
            f"rows after a key, and each batch would sort the whole table"
        )
    if not found.unique_and_sorted:
        return f"{table} has no unique index on ({shown}), so rows with the same key could be split or skipped"
    return _find_padded(keyset, found.types) or keyset.typed(found.types)


def _find_padded(keyset: Keyset, types: dict[str, str]) -> str | None:
    padded = [part.column.name for part in keyset.parts if types[part.column.name] in ("character", "bpchar")]
    if not padded:
        return None
    return f"{table_name(keyset)} ({', '.join(padded)}) is of type char(n), which a cursor cannot hold"


async def look_types_up(connection: AsyncConnection, keyset: Keyset) -> Keyset | str:
    """Return the key of groups, which need not be unique, with its types, or the reason why it cannot be a cursor."""
    parts: list[KeyPart] = []
    for part in keyset.parts:  # each part may belong to another table
        one = Keyset([part])
        found = (
            await connection.execute(_KEY, {"table": table_name(one), "columns": [part.column.name]})
        ).one_or_none()
        if found is None:
            raise _no_table(table_name(one), "stream")
        if found.has_texts:
            await _ensure_order_is_current(connection, table_name(one), [part.column.name], kind="stream")
        problem = _find_padded(one, found.types)
        if problem:
            return problem
        parts += one.typed(found.types).parts
    return Keyset(parts)


async def warn_of_unindexed_children(connection: AsyncConnection, keyset: Keyset) -> None:
    """Log each foreign key to a table that has no index: a DELETE of a parent row then scans the whole child table."""
    table = table_name(keyset)
    for child, columns in await list_unindexed_children(connection, table):
        logger.warning(
            "a foreign key has no index, so each deleted row of %s reads all of %s: "
            "cure='CREATE INDEX CONCURRENTLY ON %s (%s)'",
            table,
            child,
            child,
            columns,
        )


async def list_unindexed_children(connection: AsyncConnection, table: str) -> list[tuple[str, str]]:
    """Return each table with a foreign key to a table that no index of its own serves, and the columns of that key."""
    return [(child.table, child.columns) for child in await list_children(connection, table) if not child.is_indexed]


async def list_children(connection: AsyncConnection, table: str) -> list[Child]:
    """Return the foreign keys to a table."""
    found = await connection.execute(_CHILDREN, {"table": table})
    return [
        Child(row.name, ", ".join(map(_PREPARER.quote, row.columns)), row.cascades, row.updates, row.is_indexed)
        for row in found
    ]


async def weigh_rows(connection: AsyncConnection, statement: Select[Any], order: Sequence[Any]) -> float | None:
    """Return the bytes of a row of a select, estimated from the first rows of the walk without reading long values.

    Args:
        connection: The run's own connection.
        statement: The select.
        order: The order of the walk.
    """
    weights: list[Any] = []
    for described in statement.column_descriptions:
        entity, expression = described.get("entity"), described["expr"]
        if entity is not None and expression is entity:
            inspected: Any = inspect(entity)
            attributes = [attribute for attribute in inspected.mapper.column_attrs if not attribute.deferred]
            columns = [getattr(inspected.entity, attribute.key) for attribute in attributes]
        else:
            columns = [expression]
        # An expression could fail or have side effects: its size is measured with the first batch.
        weights += [_weight(column) for column in columns if underlying_column(column) is not None]
    if not weights:
        return None
    weight = weights[0]
    for more in weights[1:]:
        weight = weight + more
    rows = statement.with_only_columns(weight.label("weight"), maintain_column_froms=True).order_by(None)
    some = rows.order_by(*order).limit(_WEIGHED_ROWS).subquery()
    average = select(func.avg(some.c.weight)).execution_options(**statement.get_execution_options())
    weighed = await connection.scalar(average)
    return None if weighed is None else float(weighed)


def _weight(column: Any) -> Any:
    # The length of a text or bytea is known without reading a value that is stored out of line.
    kind, functions = getattr(column, "type", None), func.pg_catalog
    if isinstance(kind, String) and not isinstance(kind, Enum):
        size = functions.octet_length(cast(column, Text))  # the model may call a text what the database has as a uuid
    else:
        size = functions.octet_length(column) if isinstance(kind, LargeBinary) else functions.pg_column_size(column)
    return func.coalesce(size, 0) + _VALUE_BYTES


async def returns_sets(connection: AsyncConnection, names: Sequence[str]) -> bool:
    """Return whether one of these functions can return several rows, as unnest() does."""
    query = text(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proretset AND proname = ANY(CAST(:names AS text[])))"
    )
    return bool(await connection.scalar(query, {"names": list(names)}))


async def aggregates(connection: AsyncConnection, names: Sequence[str]) -> bool:
    """Return whether one of these functions can be an aggregate, as count() is."""
    query = text(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE prokind = 'a' AND proname = ANY(CAST(:names AS text[])))"
    )
    return bool(await connection.scalar(query, {"names": list(names)}))


async def estimate_rows(connection: AsyncConnection, statement: Executable, values: dict[str, Any]) -> int:
    """Return the planner's estimate of a statement's rows, without running it."""
    sql, arguments = CompiledStatement(statement, connection.dialect).bind(values)
    plan = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", tuple(arguments))
    found = plan.scalar_one()
    tree = json.loads(found) if isinstance(found, str) else found
    return int(tree[0]["Plan"]["Plan Rows"])


async def count_rows(connection: AsyncConnection, statement: Select[Any], *, exactly: bool) -> int:
    """Return the number of rows of a select: counted, or estimated from the planner's statistics."""
    if not exactly:
        return await estimate_rows(connection, statement, {})
    counted = select(func.count()).select_from(statement.order_by(None).subquery())
    counted = counted.execution_options(**statement.get_execution_options())
    return int(await connection.scalar(counted) or 0)


def table_name(keyset: Keyset) -> str:
    """Return the name of a key's table, in its translated schema, quoted if necessary."""
    name = _PREPARER.format_table(keyset.table, use_schema=False)
    return f"{_PREPARER.quote_schema(keyset.schema)}.{name}" if keyset.schema else name


def sql_text(statement: Executable) -> str:
    """Return a statement as SQL in one line, without its values: its fingerprint."""
    assert isinstance(statement, ClauseElement)  # noqa: S101
    return " ".join(str(CompiledStatement(statement, _DIALECT).compiled).split())
