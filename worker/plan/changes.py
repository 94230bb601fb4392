"""Finds what a transaction that is still open has changed: row by row, before and after.

PostgreSQL counts the changes of a transaction for each table, also those of triggers and cascades; its counters may
still hold those of transactions before. The rows are found by their `xmin` inside of the transaction, and by their keys
or their `xmax` from another connection, which sees them as they were.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncpg.exceptions import InsufficientPrivilegeError, QueryCanceledError, UndefinedTableError

from worker.batch.catalog import table_name
from worker.batch.keyset import Keyset

_SEARCH_SECONDS = 10
_MOST_ROWS = 1_000

_COUNTS = """
SELECT relid::regclass::text AS name, n_tup_ins + n_tup_upd + n_tup_del AS changes
  FROM pg_catalog.pg_stat_xact_user_tables
 WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> 'worker'
 ORDER BY 1
"""

_PRIMARY_KEY = """
SELECT pg_catalog.array_agg(attname::text ORDER BY attnum)
  FROM pg_catalog.pg_index
  JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey[0:indnkeyatts - 1])  -- not INCLUDE
 WHERE indrelid = pg_catalog.to_regclass($1) AND indisprimary
"""

# age() counts back from this transaction: 0 is its own number, and its savepoints have later ones.
_WRITTEN = "pg_catalog.age(t.xmin) <= 0"
# Numbers of transactions wrap around after 2^32.
# A row that was locked before a savepoint and changed in it has the number of a MultiXact, which was made since.
_REPLACED = """t.xmax <> '0'::xid
   AND ((t.xmax::text::bigint - ($1::bigint % 4294967296) + 4294967296) % 4294967296 < 2147483648
        OR pg_catalog.mxid_age(t.xmax) BETWEEN 1 AND $2::bigint)"""
# Distances between numbers of MultiXacts wrap around as well.
_MULTIXACTS = "SELECT pg_catalog.mxid_age('1'::xid)::bigint"
_FLUSH_FUNCTION_SINCE = 15
_FLUSH_LOOKS, _FLUSH_LOOK_SECONDS = 30, 0.05


@dataclass(frozen=True)
class RowChange:
    """The change of one row.

    Attributes:
        table: The table.
        action: UPDATE, INSERT or DELETE.
        key: The row's primary key, or its whole content if the table has none.
        before: The values before the change, of the columns that change; empty for an INSERT.
        after: The values after it; empty for a DELETE.
    """

    table: str
    action: str
    key: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True)
class Before:
    """The counters before a batch changes rows.

    Attributes:
        counts: The number of changes of each table that PostgreSQL counts already.
        multixacts: The counter of MultiXacts.
    """

    counts: dict[str, int]
    multixacts: int


@dataclass(frozen=True)
class Changes:
    """The changes of one transaction.

    Attributes:
        rows: The changed rows.
        counts: The number of changes of each table, as PostgreSQL counts them: a row counts once for each change.
        unshown: Tables whose rows could not be found: they are large, have too many changes, were made in the batch, or
            may not be read.
    """

    rows: list[RowChange]
    counts: dict[str, int]
    unshown: list[str]


async def read_before(raw: Any) -> Before:
    """Return the counters before a batch.

    Outside of a transaction, the server may take over at any moment what it has counted: it is told to.
    """
    counts = await _count(raw)
    if not raw.is_in_transaction() and counts:
        if raw.get_server_version().major >= _FLUSH_FUNCTION_SINCE:
            await raw.execute("SELECT pg_catalog.pg_stat_force_next_flush()")
        for _ in range(_FLUSH_LOOKS):  # an older server takes it over after half a second
            counts = await _count(raw)
            if not counts:
                break
            await asyncio.sleep(_FLUSH_LOOK_SECONDS)
    return Before(counts, await raw.fetchval(_MULTIXACTS))


async def _count(raw: Any) -> dict[str, int]:
    return {row["name"]: row["changes"] for row in await raw.fetch(_COUNTS)}


async def find_changes(
    raw: Any, observer: Any, before: Before, keyset: Keyset | None, keys: Sequence[Sequence[Any]]
) -> Changes:
    """Return the changes of the transaction that `raw` has open.

    Args:
        raw: asyncpg's connection with the transaction.
        observer: Another connection, in a transaction of its own.
        before: The counters before them.
        keyset: The key of the walked table, if it has one.
        keys: The keys of the batch's rows: they are found without reading the whole table.
    """
    found_counts = (await _count(raw)).items()
    counts = {name: count - before.counts.get(name, 0) for name, count in found_counts}
    counts = {name: count for name, count in counts.items() if count > 0}
    since = (await raw.fetchval(_MULTIXACTS) - before.multixacts) % 2**32
    top = await raw.fetchval("SELECT pg_catalog.pg_current_xact_id_if_assigned()::text::bigint")
    found: list[RowChange] = []
    unshown: list[str] = []
    walked = None
    if keyset is not None and counts:
        walked = await raw.fetchval("SELECT pg_catalog.to_regclass($1)::text", table_name(keyset))
    for table, count in counts.items():
        rows: list[RowChange] = []
        if table == walked and keyset is not None and keys:
            rows = await _find_rows(raw, observer, table, (), keyset, keys)
        if len(rows) < min(count, _MOST_ROWS):
            try:
                rows = await _find_rows(raw, observer, table, (top, since), None, ())
            except (QueryCanceledError, TimeoutError, UndefinedTableError, InsufficientPrivilegeError):
                unshown.append(table)
        if len(rows) > _MOST_ROWS and table not in unshown:
            unshown.append(table)
        found += rows[:_MOST_ROWS]
    return Changes(found, counts, unshown)


async def _find_rows(
    raw: Any,
    observer: Any,
    table: str,
    numbers: Sequence[int],
    keyset: Keyset | None,
    keys: Sequence[Sequence[Any]],
) -> list[RowChange]:
    """Return the changed rows with some keys, or of the whole table by the numbers of their transactions."""
    inside, outside = "true", _REPLACED
    values: list[list[str]] = []
    if keyset is not None:
        inside = outside = _among(keyset, keys)
        values = _columns(keyset, keys)
    select = f"SELECT t.ctid::text AS place, pg_catalog.to_jsonb(t)::text AS row FROM {table} AS t WHERE "  # noqa: S608
    end = f" LIMIT {_MOST_ROWS + 1}"
    after = await _fetch(raw, select + f"{_WRITTEN} AND {inside}" + end, *values)
    before = await _fetch(observer, select + outside + end, *numbers, *values)
    kept = await _visible(raw, table, before)
    known = await _visible(observer, table, after)
    return _pair(
        table,
        await raw.fetchval(_PRIMARY_KEY, table),
        [row for place, row in before.items() if kept.get(place) != row],
        [row for place, row in after.items() if known.get(place) != row],
    )


async def _fetch(raw: Any, sql: str, *values: Any) -> dict[str, dict[str, Any]]:
    """Return rows by their place in the table. The search may not take longer than a few seconds."""
    async with raw.transaction():  # a savepoint: a search that takes too long leaves the transaction usable
        await raw.execute(f"SET LOCAL statement_timeout = '{_SEARCH_SECONDS}s'")
        rows = await raw.fetch(sql, *values)
    return {row["place"]: json.loads(row["row"]) for row in rows}


async def _visible(raw: Any, table: str, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return those of the versions of rows that a connection sees."""
    sql = (
        f"SELECT t.ctid::text AS place, pg_catalog.to_jsonb(t)::text AS row FROM {table} AS t "  # noqa: S608
        "WHERE t.ctid = ANY(CAST($1 AS text[])::tid[])"
    )
    return await _fetch(raw, sql, list(rows)) if rows else {}


def _among(keyset: Keyset, keys: Sequence[Sequence[Any]]) -> str:
    """Return the condition that a row has one of the keys, which are the parameters."""
    columns = ", ".join(f't."{part.column.name.replace(chr(34), chr(34) * 2)}"' for part in keyset.parts)
    names = [f"k{place}" for place in range(len(keyset.parts))]
    arrays = ", ".join(f"pg_catalog.unnest(${place + 1}::text[])" for place in range(len(names)))
    values = ", ".join(f"{name}::{part.sql_type}" for name, part in zip(names, keyset.parts, strict=True))
    return f"({columns}) IN (SELECT {values} FROM ROWS FROM ({arrays}) AS given ({', '.join(names)}))"  # noqa: S608


def _columns(keyset: Keyset, keys: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [[str(key[place]) for key in keys] for place in range(len(keyset.parts))]


def _pair(
    table: str, key: list[str] | None, before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> list[RowChange]:
    """Return changes: versions of a row belong together if they have the same primary key."""

    def make_key(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in key} if key else row

    changed = {json.dumps(make_key(row)): row for row in after}
    found: list[RowChange] = []
    for row in before:
        new = changed.pop(json.dumps(make_key(row)), None) if key else None
        if new is None:
            found.append(RowChange(table, "DELETE", make_key(row), row, {}))
            continue
        columns = [name for name, value in row.items() if new.get(name) != value]
        old = {name: row[name] for name in columns}
        found.append(RowChange(table, "UPDATE", make_key(row), old, {name: new[name] for name in columns}))
    found += [RowChange(table, "INSERT", make_key(row), {}, row) for row in changed.values()]
    return found
