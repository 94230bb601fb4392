"""Bulk operations and loops accept every name of a schema, table, column and key, as SQLAlchemy does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Column, Integer, MetaData, Table, Text, delete, func, insert, select, text, update
from sqlalchemy.orm import registry

from tests.support.contexts import MakeContext
from tests.support.sampling import sampled
from worker.batch.bulk.operations import Bulk
from worker.db.engine import Database
from worker.settings import Settings

#: schema, table, key and value column.
NAMES = [
    (None, "Upper Case", "Id", "Va lue"),
    (None, "t%x", "id", "v"),
    (None, "per%cent", "50%", "100%s"),
    (None, "t:y", "id", "a:b"),
    (None, 't"q', 'i"d', "v''"),
    (None, "t$", "$1", "$2"),
    (None, "täble", "schlüssel", "größe"),
    (None, "select", "from", "where"),
    (None, "user", "order", "group"),
    (None, "given", "target", "excluded"),
    ("Odd Schema", "dotted.name", "a.b", "c.d(e)"),
    ("per%cent", "x[y]", "k[0]", "v(1)"),
    ("user", "table", "values", "returning"),
    (None, "l" * 63, "k" * 63, "v" * 63),
    (None, "back\\slash", "k\\", "\\v"),
]


def make_table(schema: str | None, name: str, key: str, value: str) -> Table:
    return Table(name, MetaData(schema=schema), Column(key, Integer, primary_key=True), Column(value, Integer))


@pytest_asyncio.fixture
async def opened(database: Database) -> AsyncIterator[Database]:
    """A database in which tables are made and dropped."""
    yield database
    async with database.engine.begin() as connection:
        for schema in {name[0] for name in NAMES if name[0]} | {"tenant_7"}:
            await connection.exec_driver_sql(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@pytest.mark.parametrize("mapped", [False, True], ids=["table", "class"])
async def test_bulk_writes_to_tables_of_any_name(opened: Database, settings: Settings, mapped: bool) -> None:
    bulk = Bulk(None, settings.batch.model_copy(update={"copy_from_rows": 5}), opened)
    for names in NAMES:
        table = make_table(*names)
        entity: Any = table
        keys = [column.key for column in table.columns]
        if mapped:
            entity = type("Mapped", (), {})
            key, value = table.columns
            registry(metadata=table.metadata).map_imperatively(entity, table, properties={"k": key, "v": value})
            keys = ["k", "v"]
        async with opened.engine.begin() as connection:
            if names[0]:
                await connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{names[0]}"')
            await connection.run_sync(table.metadata.create_all)
        rows = [dict(zip(keys, (n, n), strict=True)) for n in range(10)]
        assert await bulk.insert(entity, rows) == 10
        assert await bulk.insert(entity, [dict(zip(keys, (10, 10), strict=True))]) == 1
        assert await bulk.update(entity, [row | {keys[1]: 100} for row in rows[:3]]) == 3
        assert await bulk.upsert(entity, [dict(zip(keys, (n, 200), strict=True)) for n in (3, 11)]) == 2
        assert await bulk.delete(entity, [4, 5]) == 2
        async with opened.engine.begin() as connection:
            found = (await connection.execute(select(table).order_by(*table.primary_key))).all()
            assert [tuple(row) for row in found] == [
                *((0, 100), (1, 100), (2, 100), (3, 200), (6, 6), (7, 7), (8, 8), (9, 9), (10, 10), (11, 200))
            ], names
            await connection.run_sync(table.metadata.drop_all)


@pytest.mark.parametrize("names", sampled([(one,) for one in NAMES], 2, ids=[name[1][:12] for name in NAMES]))
async def test_loops_walk_tables_of_any_name(opened: Database, context: MakeContext, names: Any) -> None:
    table = make_table(*names)
    key, value = table.columns
    async with opened.engine.begin() as connection:
        if names[0]:
            await connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{names[0]}"')
        await connection.run_sync(table.metadata.create_all)
        await connection.execute(insert(table), [{key.key: n, value.key: n} for n in range(20)])
    ctx = context()
    async for batch in ctx.chunks(select(key, value), size=7):
        await batch.bulk.update(table, [{key.key: row[0], value.key: -row[1]} for row in batch])
    seen = [row async for batch in ctx.stream(select(key, value).order_by(key), size=7) for row in batch]
    assert [tuple(row) for row in seen] == [(n, -n) for n in range(20)]
    assert await ctx.sweep(update(table).where(value < -5).values({value: value - 1}), size=7) == 14
    assert await ctx.sweep(delete(table).where(key > 10), size=7) == 9
    async with opened.engine.begin() as connection:
        assert await connection.scalar(select(func.sum(value))) == -sum(range(11)) - 5
        await connection.run_sync(table.metadata.drop_all)


async def test_bulk_writes_to_the_translated_schema_of_its_connection(opened: Database, context: MakeContext) -> None:
    table = Table("translated", MetaData(), Column("id", Integer, primary_key=True), Column("who", Text))
    async with opened.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE SCHEMA tenant_7")
        for schema in ("public", "tenant_7"):
            await connection.exec_driver_sql(f"CREATE TABLE {schema}.translated (id int PRIMARY KEY, who text)")
            await connection.exec_driver_sql(
                f"INSERT INTO {schema}.translated SELECT g, '-' FROM generate_series(1, 4) g"
            )
    async for batch in context().chunks(select(table.c.id), size=10, lock=False):
        await batch.session.connection(execution_options={"schema_translate_map": {None: "tenant_7"}})
        await batch.bulk.insert(table, [{"id": n, "who": "inserted"} for n in range(100, 400)])
        await batch.bulk.update(table, [{"id": 1, "who": "updated"}])
        await batch.bulk.upsert(table, [{"id": 2, "who": "upserted"}])
        await batch.bulk.delete(table, [3])
    async with opened.engine.begin() as connection:
        query = "SELECT who, count(*) FROM {}.translated GROUP BY who ORDER BY who"
        public = (await connection.execute(text(query.format("public")))).all()
        tenant = (await connection.execute(text(query.format("tenant_7")))).all()
        await connection.exec_driver_sql("DROP TABLE public.translated")
    assert public == [("-", 4)]
    assert tenant == [("-", 1), ("inserted", 300), ("updated", 1), ("upserted", 1)]
