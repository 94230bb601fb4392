"""Bulk operations, on a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    CHAR,
    Column,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from tests.models import Author, Base, Mood, Sample, authors
from tests.support.contexts import MakeContext
from worker.batch.bulk.operations import Bulk
from worker.db.engine import Database
from worker.errors import BulkError
from worker.settings import Settings

VALUES: dict[str, Any] = {
    "mood": Mood.wild,
    "tags": ["a", "b,c", '"'],
    "data": {"k": [1, None]},
    "price": Decimal("12.345"),
    "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
}


async def read(database: Database, id_: int) -> dict[str, Any]:
    async with database.session() as session:
        found = (await session.execute(select(Sample).where(Sample.id == id_))).scalar_one()
        return {name: getattr(found, name) for name in [*VALUES, "count"]}


@pytest.mark.parametrize("rows", [3, 1000])
async def test_insert_carries_every_type_null_and_default(context: MakeContext, database: Database, rows: int) -> None:
    nulls = dict.fromkeys(VALUES)
    given = [{"id": i, **(VALUES if i % 2 else nulls)} for i in range(rows)]
    assert await context().bulk.insert(Sample, given) == rows
    assert await read(database, 1) == {**VALUES, "count": 7}
    assert await read(database, 2) == {**nulls, "count": 7}


async def test_update_and_upsert_carry_every_type(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    await bulk.insert(Sample, [{"id": i, "count": 1} for i in range(10)])
    assert await bulk.update(Sample, [{"id": 3, **VALUES}, {"id": 99, **VALUES}]) >= 1
    assert await read(database, 3) == {**VALUES, "count": 1}
    without_tags = {name: value for name, value in VALUES.items() if name != "tags"}
    assert await bulk.upsert(Sample, [{"id": 4, **without_tags}, {"id": 50, **without_tags}]) == 2
    assert await read(database, 4) == {**without_tags, "tags": None, "count": 1}
    assert await read(database, 50) == {**without_tags, "tags": None, "count": 7}


async def test_rows_as_columns_are_the_same_rows(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    ids = list(range(300))
    assert await bulk.insert(Sample, {"id": ids, "price": [Decimal(i) for i in ids]}) == 300
    assert await bulk.insert(Sample, {"id": [1000], "mood": [Mood.wild]}) == 1
    assert await bulk.update(Sample, {"id": [1, 2], "mood": [Mood.wild, None]}) == 2
    assert await bulk.upsert(Sample, {"id": [2, 300], "count": [5, 6]}) == 2
    assert await bulk.update(Sample, {"id": [], "count": []}) == 0
    async with database.session() as session:
        rows = await session.execute(
            select(Sample.id, Sample.mood, Sample.price, Sample.count, Sample.changes)
            .where(Sample.id.in_([1, 2, 300, 1000]))
            .order_by(Sample.id)
        )
        assert rows.all() == [
            (1, Mood.wild, Decimal(1), 7, "changed"),
            (2, None, Decimal(2), 5, "changed"),
            (300, None, None, 6, None),
            (1000, Mood.wild, None, 7, None),
        ]
    with pytest.raises(BulkError, match="id has 2, count has 1"):
        await bulk.update(Sample, {"id": [1, 2], "count": [1]})
    with pytest.raises(BulkError, match="rows 0 and 1 have the same key 1"):
        await bulk.update(Sample, {"id": [1, 1], "count": [1, 2]})
    with pytest.raises(BulkError, match="no column 'nope'"):
        await bulk.insert(Sample, {"id": [1], "nope": [1]})


async def test_onupdate_is_set_on_rows_that_are_there(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    await bulk.insert(Sample, [{"id": 1}, {"id": 2}, {"id": 3}])
    await bulk.update(Sample, [{"id": 1, "count": 1}])
    await bulk.upsert(Sample, [{"id": 2, "count": 2}, {"id": 4, "count": 4}])
    await bulk.update(Sample, [{"id": 3, "count": 3, "changed_at": None, "changes": "mine"}])
    async with database.session() as session:
        rows = await session.execute(select(Sample.changed_at.is_not(None), Sample.changes).order_by(Sample.id))
        assert rows.all() == [(True, "changed"), (True, None), (False, "mine"), (False, None)]


async def test_a_hundred_thousand_rows_in_one_call(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    assert await bulk.insert(Author, authors(100_000)) == 100_000
    assert await bulk.update(Author, [{"id": i, "seen": i} for i in range(1, 100_001)]) == 100_000
    assert await bulk.delete(Author, list(range(1, 99_999))) == 99_998
    async with database.session() as session:
        assert await session.scalar(select(func.sum(Author.seen))) == 99_999 + 100_000


async def test_orm_objects_are_rows_too(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    assert await bulk.insert(Author, [Author(**row) for row in authors(300)]) == 300
    assert await bulk.delete(Author, [Author(id=1), Author(id=2)]) == 2


async def test_rows_that_name_different_columns_change_only_what_they_name(
    context: MakeContext, database: Database
) -> None:
    bulk = context().bulk
    await bulk.insert(Sample, [{"id": n, "count": 50} for n in (1, 2, 3)])
    await bulk.upsert(Sample, [{"id": 1, "count": 99}, {"id": 2}, {"id": 3, "price": Decimal(1)}])
    async with database.session() as session:
        rows = (await session.execute(select(Sample.count, Sample.price).order_by(Sample.id))).all()
    assert rows == [(99, None), (50, None), (50, Decimal("1.000"))]


class Code(TypeDecorator[str]):
    """A type of an application, around one with a length."""

    impl = String(5)
    cache_ok = True


class Odd(Base):
    """Types whose cast would change the value."""

    __tablename__ = "odd_types"

    id: Mapped[str] = mapped_column(CHAR(4), primary_key=True)
    code: Mapped[str | None] = mapped_column(Code)
    codes: Mapped[list[str] | None] = mapped_column(ARRAY(String(5)))


async def test_a_text_that_is_too_long_is_an_error(context: MakeContext) -> None:
    bulk = context().bulk
    await bulk.insert(Odd, [{"id": "a"}])
    for write in (bulk.insert, bulk.update, bulk.upsert):
        with pytest.raises(BulkError, match="too long"):
            await write(Odd, [{"id": "a" if write != bulk.insert else "b", "code": "ABCDEFGH"}])


@pytest.mark.parametrize("rows", [3, 300])
async def test_insert_cuts_texts_of_an_array_as_sqlalchemy_does_whatever_the_number_of_rows(
    context: MakeContext, database: Database, rows: int
) -> None:
    await context().bulk.insert(Odd, [{"id": str(n), "codes": ["ABCDEFGH"]} for n in range(rows)])
    async with database.session() as session:
        assert set(map(tuple, await session.scalars(select(Odd.codes)))) == {("ABCDE",)}


async def test_padded_keys_find_their_rows(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    await bulk.insert(Odd, [{"id": "a"}, {"id": "b"}])
    async with database.session() as session:
        keys = (await session.scalars(select(Odd.id))).all()
    assert await bulk.update(Odd, [{"id": key, "code": "x"} for key in keys]) == 2
    assert await bulk.update(Odd, [{"id": key, "codes": ["x"]} for key in [*keys, "c"]]) == 2
    assert await bulk.delete(Odd, keys) == 2


class Animal(Base):
    """Single-table and joined inheritance."""

    __tablename__ = "animal"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str | None]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Mouse(Animal):
    """In the same table."""

    __mapper_args__ = {"polymorphic_identity": "mouse"}


class Dog(Animal):
    """In two tables."""

    __tablename__ = "dog"

    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Numbered(Base):
    """Its key is the server's alone."""

    __tablename__ = "numbered"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str]


@pytest.mark.parametrize("rows", [3, 1000])
async def test_inheritance_and_identities_are_as_in_the_orm(
    context: MakeContext, database: Database, rows: int
) -> None:
    bulk = context().bulk
    await bulk.insert(Mouse, [{"id": n} for n in range(rows)])
    await bulk.insert(Dog, [{"id": rows + n, "name": "rex"} for n in range(rows)])
    async with database.session() as session:
        found = await session.execute(select(Animal.kind, func.count()).group_by(Animal.kind).order_by(Animal.kind))
        assert found.all() == [("dog", rows), ("mouse", rows)]
    with pytest.raises(BulkError, match="rows of several tables"):
        await bulk.delete(Dog, [rows])
    with pytest.raises(BulkError):
        await bulk.insert(Numbered, [{"id": n, "name": "x"} for n in range(rows)])
    assert await bulk.insert(Numbered, [{"name": "x"} for n in range(rows)]) == rows


async def test_keys_as_dicts_and_rows_as_generators(context: MakeContext) -> None:
    bulk = context().bulk
    assert await bulk.insert(Author, (row for row in authors(300))) == 300
    assert await bulk.delete(Author, [{"id": 1}, {"id": 2}]) == 2
    with pytest.raises(BulkError, match="row 1: no value for id"):
        await bulk.delete(Author, [{"id": 3}, {"name": "x"}])


async def test_a_copy_first_in_a_transaction_goes_with_its_rollback(context: MakeContext, database: Database) -> None:
    ctx = context()
    await ctx.bulk.insert(Sample, [{"id": 1}])
    with pytest.raises(RuntimeError):
        async for batch in ctx.chunks(select(Sample), lock=False):
            await batch.bulk.insert(Author, authors(500))  # the first statement of this transaction
            raise RuntimeError
    await ctx._attempt.fail()
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Author)) == 0


async def test_a_savepoint_holds_what_bulk_writes_in_it(context: MakeContext, database: Database) -> None:
    bulk = context().bulk
    await bulk.insert(Author, authors(30))
    ctx = context()
    async for batch in ctx.chunks(select(Author.id), size=10):
        with pytest.raises(RuntimeError):
            async with ctx.savepoint(batch.session):
                await batch.bulk.upsert(Sample, [{"id": id_} for id_ in batch])
                raise RuntimeError
        with pytest.raises(BulkError):
            async with ctx.savepoint(batch.session):
                await batch.bulk.insert(Sample, {"id": [1] * 300})  # the server refuses it
        await batch.bulk.insert(Sample, [{"id": 100 + id_} for id_ in batch])  # the batch continues
    async with database.session() as session:
        assert sorted(await session.scalars(select(Sample.id))) == list(range(101, 131))


@pytest.mark.parametrize("rows", [5, 300])
async def test_insert_into_a_table_writes_what_each_row_names(
    context: MakeContext, database: Database, rows: int
) -> None:
    table = Sample.__table__
    given = [
        {"id": 1},
        *({"id": n, "count": n, "price": Decimal(1)} for n in range(2, rows + 1)),
        {"id": 0, "count": 9},
    ]
    assert await context().bulk.insert(table, given) == rows + 1
    async with database.session() as session:
        found = await session.execute(select(Sample.id, Sample.count, Sample.price).order_by(Sample.id))
        first = [tuple(row) for row in found.all()[:3]]
    assert first == [(0, 9, None), (1, 7, None), (2, 2, Decimal("1.000"))]


async def test_insert_goes_by_arrays_where_row_level_security_forbids_copy(
    context: MakeContext, database: Database, settings: Settings
) -> None:
    async with database.engine.begin() as connection:
        for statement in (
            "CREATE TABLE secured (id int PRIMARY KEY)",
            "ALTER TABLE secured ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY small ON secured USING (true) WITH CHECK (id < 1000)",
            "CREATE ROLE limited LOGIN PASSWORD 'x'",
            "GRANT USAGE ON SCHEMA public TO limited",
            "GRANT ALL ON secured TO limited",
        ):
            await connection.exec_driver_sql(statement)
    url = make_url(settings.database.url).set(username="limited", password="x")
    there = settings.database.model_copy(update={"url": url.render_as_string(hide_password=False)})
    limited = Database(settings.model_copy(update={"database": there}))
    table = Table("secured", MetaData(), Column("id", Integer, primary_key=True))
    bulk = Bulk(None, settings.batch, limited)
    try:
        assert await bulk.insert(table, [{"id": n} for n in range(300)]) == 300
        with pytest.raises(DBAPIError, match="row-level security"):
            await bulk.insert(table, [{"id": 5000}])
    finally:
        await limited.close()
    async with database.engine.begin() as connection:
        assert await connection.scalar(select(func.count()).select_from(table)) == 300
        for statement in ("DROP TABLE secured", "DROP OWNED BY limited", "DROP ROLE limited"):
            await connection.exec_driver_sql(statement)
