"""The fast paths write the same table as SQLAlchemy's own paths, for every type and every way to name a table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import bindparam, delete, insert, literal_column, select, text, update
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.batch.equality import CASES, ENTITIES, SCHEMA, Base
from worker.batch.bulk.eligibility import are_copyable, are_keys, array_cast, read_facts
from worker.batch.bulk.operations import Bulk
from worker.batch.bulk.target import make_target
from worker.batch.bulk_flush import flush_changes
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.settings import Settings

#: Rows with each value: enough for COPY (see `bulk`) and for a flush of many objects.
COPIES = 12

Write = Callable[[Any, list[Any]], Awaitable[None]]


@pytest_asyncio.fixture
async def tables(database: Database) -> AsyncIterator[Database]:
    """A table for each type."""
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        for extension in ("hstore", "citext"):
            await connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS {extension}"))
        await connection.run_sync(Base.metadata.create_all)
    yield database
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))


def rows_of(values: list[Any]) -> list[dict[str, Any]]:
    """Return rows, a few with each value."""
    return [{"id": place * COPIES + copy, "x": value} for place, value in enumerate(values) for copy in range(COPIES)]


class Ours:
    """Our paths."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._few = Bulk(None, settings.batch.model_copy(update={"copy_from_rows": 10**9}), database)
        self._bulk = Bulk(None, settings.batch.model_copy(update={"copy_from_rows": 1}), database)

    async def insert_few(self, entity: Any, values: list[Any]) -> None:
        await self._few.insert(entity, rows_of(values))

    async def insert(self, entity: Any, values: list[Any]) -> None:
        await self._bulk.insert(entity, rows_of(values))

    async def insert_core(self, entity: Any, values: list[Any]) -> None:
        await self._bulk.insert(entity.__table__, rows_of(values))

    async def update(self, entity: Any, values: list[Any]) -> None:
        await self._bulk.update(entity, rows_of(values))

    async def upsert(self, entity: Any, values: list[Any]) -> None:
        await self._bulk.upsert(entity, [{"n": 1} | row for row in rows_of(values)])

    async def update_by_value(self, entity: Any, values: list[Any]) -> None:
        await self._bulk.update(entity, [{"x": value, "n": 90 + place} for place, value in enumerate(values)], by=["x"])

    async def delete_by_value(self, entity: Any, values: list[Any]) -> None:
        await self._bulk.delete(entity, [{"x": value} for value in values], by=["x"])

    async def flush(self, entity: Any, values: list[Any]) -> None:
        async with AsyncSession(self._database.engine, expire_on_commit=False) as session:
            connection = await session.connection()
            await change(session, entity, values)
            driver = await Driver.from_connection(connection)
            await flush_changes(session.sync_session, connection, await driver.begin())
            await session.flush()
            await session.commit()


class Theirs:
    """SQLAlchemy's paths."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_few(self, entity: Any, values: list[Any]) -> None:
        async with AsyncSession(self._database.engine) as session, session.begin():
            await session.execute(insert(entity), rows_of(values))

    insert = insert_few

    async def insert_core(self, entity: Any, values: list[Any]) -> None:
        async with self._database.engine.begin() as connection:
            await connection.execute(insert(entity.__table__), rows_of(values))

    async def update(self, entity: Any, values: list[Any]) -> None:
        async with AsyncSession(self._database.engine) as session, session.begin():
            await session.execute(update(entity), rows_of(values))

    async def upsert(self, entity: Any, values: list[Any]) -> None:
        statement = pg.insert(entity.__table__)
        changes = {"x": statement.excluded.x, "n": statement.excluded.n}
        async with self._database.engine.begin() as connection:
            for row in rows_of(values):
                one = statement.values(n=1, **row).on_conflict_do_update(index_elements=["id"], set_=changes)
                await connection.execute(one)

    async def update_by_value(self, entity: Any, values: list[Any]) -> None:
        table = entity.__table__
        async with self._database.engine.begin() as connection:
            for place, value in enumerate(values):
                await connection.execute(update(table).where(table.c.x == bound(table.c.x, value)).values(n=90 + place))

    async def delete_by_value(self, entity: Any, values: list[Any]) -> None:
        table = entity.__table__
        async with self._database.engine.begin() as connection:
            for value in values:
                await connection.execute(delete(table).where(table.c.x == bound(table.c.x, value)))

    async def flush(self, entity: Any, values: list[Any]) -> None:
        async with AsyncSession(self._database.engine, expire_on_commit=False) as session:
            await change(session, entity, values)
            await session.commit()


def bound(column: Any, value: Any) -> Any:
    """Return a parameter of a column's type; `column == None` would be IS NULL."""
    return bindparam(None, value, type_=column.type)


async def change(session: AsyncSession, entity: Any, values: list[Any]) -> None:
    """Give objects their new values."""
    wanted = {row["id"]: row["x"] for row in rows_of(values)}
    for row in (await session.scalars(select(entity).options())).all():
        row.x = wanted[row.id]


async def fill(database: Database, entity: Any, how: str, values: list[Any]) -> None:
    """Insert the rows that a way of writing changes."""
    table = entity.__table__
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DELETE FROM {table.fullname}"))
        if how in ("update", "upsert", "flush"):
            count = len(values) * COPIES if how != "upsert" else len(values) * COPIES // 2
            series = f"SELECT g, 1 FROM generate_series(0, {count} - 1) AS g"
            await connection.execute(text(f"INSERT INTO {table.fullname} (id, n) {series}"))
        elif how.endswith("by_value"):
            rows = rows_of(await accepted(connection, entity, values))[::COPIES]
            if rows:
                await connection.execute(insert(table), rows)


async def accepted(connection: AsyncConnection, entity: Any, values: list[Any]) -> list[Any]:
    """Return the values that SQLAlchemy can insert."""
    found = []
    for value in values:
        savepoint = await connection.begin_nested()
        try:
            await connection.execute(insert(entity.__table__).values(id=0, x=value))
        except Exception:
            continue
        else:
            found.append(value)
        finally:
            await savepoint.rollback()
    return found


async def outcome(database: Database, write: Write, entity: Any, how: str, values: list[Any]) -> tuple[str, Any]:
    """Return the error of a way of writing, or "", and the content of the table afterwards, in the server's text."""
    await fill(database, entity, how, values)
    failed = ""
    try:
        await write(entity, values)
    except Exception as error:
        failed = f"{type(error).__name__}: {str(error)[:90]}"
    table = entity.__table__
    columns = [literal_column(column) for column in ("id", "x::text", "n")]
    async with database.engine.connect() as connection:
        rows = await connection.execute(select(*columns).select_from(table).order_by(table.c.id))
        return failed, [tuple(row) for row in rows]


async def difference(database: Database, settings: Settings, how: str, name: str, values: list[Any]) -> str | None:
    """Return the differences between our values and SQLAlchemy's."""
    entity = ENTITIES[name]
    ours = await outcome(database, getattr(Ours(database, settings), how), entity, how, values)
    theirs = await outcome(database, getattr(Theirs(database), how), entity, how, values)
    # Whether a cast of a key fails that no row is compared with is up to the planner.
    fails_alike = bool(ours[0]) == bool(theirs[0]) or how.endswith("by_value")
    if fails_alike and ours[1] == theirs[1]:
        return None
    return f"{how} of {name}, {values!r:.60}:\n   ours {ours!r:.200}\n theirs {theirs!r:.200}"


#: Cases that COPY does not write, that are not sent as arrays, and whose values can be keys of arrays.
NOT_COPIED = [
    "bit",
    "cidr",
    "citext",
    "collated_string",
    "datemultirange",
    "domain",
    "enums",
    "float_24",
    "hstore",
    "inet",
    "int4multirange",
    "interval_fields",
    "jsonpath",
    "macaddr",
    "macaddr8",
    "money",
    "numerics",
    "oid",
    "real",
    "regclass",
    "regconfig",
    "secret",
    "sized_strings",
    "tsquery",
    "tsvector",
    "user_defined",
    "user_defined_expression",
    "uuid_char",
]
NOT_IN_ARRAYS = [
    "binaries",
    "bit",
    "booleans",
    "cidr",
    "citext",
    "collated_string",
    "datemultirange",
    "domain",
    "enums",
    "hstore",
    "inet",
    "int4multirange",
    "integers",
    "jsonbs",
    "jsonpath",
    "macaddr",
    "macaddr8",
    "matrix",
    "moments",
    "money",
    "numerics",
    "oid",
    "ranges",
    "regclass",
    "regconfig",
    "secret",
    "secrets",
    "sized_strings",
    "strings",
    "tsquery",
    "tsvector",
    "user_defined",
    "user_defined_expression",
    "uuid_char",
    "uuids",
    "varbit",
]
KEYS = [
    "big_integer",
    "boolean",
    "date",
    "enum",
    "enum_texts",
    "enum_values",
    "integer",
    "pg_enum",
    "sized_string",
    "small_integer",
    "string",
    "text",
    "timestamp",
    "timestamp_3",
    "timestamptz",
    "unicode",
    "uuid",
    "uuid_text",
    "varchar",
    "variant",
]

SHORT_WAYS = ["insert", "update", "upsert", "flush", "update_by_value", "delete_by_value"]
WAYS = ["insert_few", "insert_core", *SHORT_WAYS]


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.long)])
async def test_fast_paths_write_every_type_as_sqlalchemy_does(tables: Database, settings: Settings, half: int) -> None:
    """All values that fit, at once. `make test` writes half of the types, and `make test-long` the others."""
    found = []
    for name, case in list(CASES.items())[half::2]:
        async with tables.engine.connect() as connection:
            values = [*await accepted(connection, ENTITIES[name], [*case.values]), None]
        # The same key twice is our own error, because the row is ambiguous.
        keys = [value for place, value in enumerate(values) if value not in values[:place]]
        for how in SHORT_WAYS:
            if case.key or not how.endswith("by_value"):
                given = keys if how.endswith("by_value") else values
                found += [await difference(tables, settings, how, name, given)]
    assert [one for one in found if one] == [], "\n".join(one for one in found if one)


async def test_fast_paths_are_taken_for_the_types_that_are_listed(tables: Database) -> None:
    async with tables.engine.connect() as connection:
        raw = await (await Driver.from_connection(connection)).begin()
        copied, sent_as_arrays, keys = set(), set(), set()
        for name, entity in ENTITIES.items():
            facts = await read_facts(raw, {}, make_target(entity))
            assert facts is not None
            column = entity.__table__.c.x
            copied |= {name} if are_copyable([column], facts) else set()
            sent_as_arrays |= {name} if array_cast(column, facts) else set()
            keys |= {name} if are_keys([column], facts) else set()
    assert sorted(set(ENTITIES) - copied) == sorted(NOT_COPIED)
    assert sorted(set(ENTITIES) - sent_as_arrays) == sorted(NOT_IN_ARRAYS)
    assert sorted(keys) == sorted(KEYS)


@pytest.mark.long
@pytest.mark.parametrize("how", WAYS)
async def test_fast_paths_write_or_refuse_every_value_as_sqlalchemy_does(
    tables: Database, settings: Settings, how: str
) -> None:
    """Each value alone, including invalid ones."""
    found = []
    for name, case in CASES.items():
        if case.key or not how.endswith("by_value"):
            found += [await difference(tables, settings, how, name, [value]) for value in [*case.values, None]]
    assert [one for one in found if one] == [], "\n".join(one for one in found if one)
