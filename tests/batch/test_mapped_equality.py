"""Bulk operations and the flush of a batch write what SQLAlchemy writes, for every way to map a class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from tests.batch.mapped_classes import (
    CALLS,
    COUNT,
    COUNTED,
    CREATE,
    ENTITIES,
    SCHEMA,
    Base,
    Composite,
    Defaulted,
    Elements,
    Embedded,
    Mutated,
    Point,
    Versioned,
)
from worker.batch.bulk.operations import Bulk
from worker.batch.bulk_flush import flush_changes
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.errors import BulkError
from worker.settings import Settings


@pytest_asyncio.fixture
async def tables(database: Database) -> AsyncIterator[Database]:
    """A table for each class."""
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        await connection.run_sync(Base.metadata.create_all)
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.execute(CREATE)
    yield database
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))


def new_rows(entity: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"id": number, "n": number * 3} for number in range(COUNT)]
    if entity is Embedded:
        return [row | {"vector": Elements(1, row["id"])} for row in rows]
    return rows


def changed_rows(entity: Any) -> list[dict[str, Any]]:
    version = {"version": 1} if entity is Versioned else {}
    return [{"id": number, "n": 500 + number, **version} for number in range(COUNT)]


class Ours:
    """Our paths; `many` is above the limit from which COPY is used."""

    def __init__(self, database: Database, settings: Settings, *, many: bool) -> None:
        self._database = database
        batch = settings.batch.model_copy(update={"copy_from_rows": 1 if many else 10**9})
        self._bulk = Bulk(None, batch, database)

    async def insert(self, entity: Any) -> None:
        await self._bulk.insert(entity, new_rows(entity))

    async def update(self, entity: Any) -> None:
        assert await self._bulk.update(entity, changed_rows(entity)) == COUNT

    async def flush(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine, expire_on_commit=False) as session:
            connection = await session.connection()
            await change(session, entity)
            driver = await Driver.from_connection(connection)
            await flush_changes(session.sync_session, connection, await driver.begin())
            await session.commit()


class Theirs:
    """SQLAlchemy's paths."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine) as session, session.begin():
            await session.execute(insert(entity), new_rows(entity))

    async def update(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine) as session, session.begin():
            await session.execute(update(entity), changed_rows(entity))

    async def flush(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine, expire_on_commit=False) as session:
            await change(session, entity)
            await session.commit()


async def change(session: AsyncSession, entity: Any) -> None:
    """Change every object."""
    for row in (await session.scalars(select(entity))).all():
        row.n += 5
        if entity is Embedded:
            row.vector = Elements(7, row.id)
        elif entity is Mutated:
            row.document["changed"] = row.id
        elif entity is Composite:
            row.point = Point(row.id, 3)


async def outcome(database: Database, entity: Any, how: str, write: Callable[[Any], Awaitable[None]]) -> Any:
    """Return the error of a way of writing, or None, and all rows as the server shows them."""
    prepare = sa.inspect(entity).tables
    names = [f'{SCHEMA}."{table.name}"' for table in prepare]
    async with database.engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"))
        await connection.execute(text(f'ALTER SEQUENCE {SCHEMA}."odd seq" RESTART'))
    if how != "insert":
        await Theirs(database).insert(entity)
    failed = None
    try:
        await write(entity)
    except Exception as error:
        failed = type(error)
    async with database.engine.connect() as connection:
        rows = [sorted(await connection.scalars(text(f"SELECT t::text FROM {name} AS t"))) for name in names]
    assert failed is None or not issubclass(failed, AssertionError)
    return failed, rows


async def test_writes_to_every_kind_of_mapped_class_are_those_of_sqlalchemy(
    tables: Database, settings: Settings
) -> None:
    found = []
    for entity in ENTITIES:
        for how in ("insert", "update", "flush"):
            theirs = await outcome(tables, entity, how, getattr(Theirs(tables), how))
            assert theirs[0] is None, f"{how} of {entity.__name__}: {theirs[0]}"
            for many in (False, True) if how == "insert" else (True,):
                ours = await outcome(tables, entity, how, getattr(Ours(tables, settings, many=many), how))
                if ours != theirs:
                    found.append(
                        f"{how} of {entity.__name__}, {many=}:\n   ours {ours!r:.300}\n theirs {theirs!r:.300}"
                    )
    assert found == [], "\n".join(found)


async def test_bulk_upsert_gives_defaults_of_the_context(tables: Database, settings: Settings) -> None:
    bulk = Bulk(None, settings.batch, tables)

    assert await bulk.upsert(Defaulted, new_rows(Defaulted)) == COUNT

    async with tables.engine.connect() as connection:
        copied = await connection.scalars(select(Defaulted.copied).order_by(Defaulted.id))
        assert list(copied) == [number * 10 for number in range(COUNT)]


async def test_bulk_update_of_a_versioned_class_checks_the_version(tables: Database, settings: Settings) -> None:
    bulk = Bulk(None, settings.batch, tables)
    await bulk.insert(Versioned, new_rows(Versioned))

    with pytest.raises(StaleDataError):
        await bulk.update(Versioned, [{"id": 1, "n": 2, "version": 9}])
    with pytest.raises(BulkError, match="no value for version"):
        await bulk.update(Versioned, [{"id": 1, "n": 2}])
    with pytest.raises(BulkError, match="version counter"):
        await bulk.update(Versioned, [{"id": 1, "n": 2, "version": 1}], by=["n"])
    async with tables.engine.connect() as connection:
        assert await connection.scalar(select(Versioned.version).where(Versioned.id == 1)) == 1


async def test_bulk_insert_calls_a_default_once_for_each_row(tables: Database, settings: Settings) -> None:
    async with tables.engine.begin() as connection:
        await connection.run_sync(COUNTED.create)
    CALLS.clear()

    await Bulk(None, settings.batch, tables).insert(COUNTED, [{"n": number} for number in range(3)])

    assert CALLS == [0, 1, 2]
