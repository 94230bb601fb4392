"""Bulk operations, on a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    ARRAY,
    CHAR,
    Column,
    Double,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    func,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import TypeDecorator

from tests.models import Author, Base, Mood, Sample, authors
from tests.support.contexts import MakeContext
from worker.batch.bulk.operations import Bulk
from worker.db.engine import Database
from worker.db.errors import sqlstate
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": 2**40}, "row 333"),
        ({"name": None}, "row 333"),
        ({"name": "x" * 21}, "row 333"),
        ({"id": 5}, "row 333|row 4"),
    ],
)
async def test_an_error_names_the_row(
    context: MakeContext, database: Database, change: dict[str, Any], message: str
) -> None:
    rows = authors(500)
    rows[333] |= change
    with pytest.raises(BulkError, match=message):
        await context().bulk.insert(Author, rows)
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Author)) == 0


async def test_an_error_of_an_update_names_the_row(context: MakeContext) -> None:
    bulk = context().bulk
    await bulk.insert(Author, authors(500))
    for bad in ({"region": 2**40}, {"region": None}):
        rows = [{"id": i, "region": 1} for i in range(1, 501)]
        rows[222] |= bad
        with pytest.raises(BulkError, match="row 222"):
            await bulk.update(Author, rows)


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


@pytest.mark.parametrize("code", ["55P03", "40P01", "53100", "08006"])
@pytest.mark.parametrize("way", ["insert", "update", "upsert", "delete"])
async def test_bulk_raises_an_error_that_no_row_is_to_blame_for_as_it_is(
    context: MakeContext, database: Database, code: str, way: str
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text(
                f"CREATE OR REPLACE FUNCTION fail_now() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN RAISE 'not now' USING ERRCODE = '{code}'; END $$"
            )
        )
        await session.execute(
            text(
                "CREATE TRIGGER fail_now BEFORE INSERT OR UPDATE OR DELETE ON author FOR EACH STATEMENT "
                "EXECUTE FUNCTION fail_now()"
            )
        )
    rows: list[Any] = authors(3) if way != "delete" else [1, 2]
    for count in (1, 100) if way == "insert" else (1,):
        given = [row | {"id": row["id"] + 10 * n} for n in range(count) for row in rows] if way != "delete" else rows
        with pytest.raises((asyncpg.PostgresError, DBAPIError)) as failed:
            await getattr(context().bulk, way)(Author, given)
        assert sqlstate(failed.value) == code


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


class Day(Base):
    """Its key is a date."""

    __tablename__ = "day"

    day: Mapped[date] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=0)


DAYS = ["0001-01-01", "-infinity", "2013-01-01", "9999-12-31", "infinity"]


@pytest.mark.parametrize("there", [DAYS[::2], [DAYS[1], DAYS[3]], ["9999-12-31", "0001-01-01"], ["infinity"]])
async def test_keys_at_the_ends_of_the_calendar_are_found(
    context: MakeContext, database: Database, there: list[str]
) -> None:
    async with database.transaction() as session:
        for day in there:
            await session.execute(text(f"INSERT INTO day VALUES ('{day}', 0)"))
    ctx = context()
    async for batch in ctx.chunks(select(Day.day), size=1):
        assert await batch.bulk.update(Day, [{"day": day, "n": 1} for day in batch]) == 1
    async with database.session() as session:
        assert set(await session.scalars(select(Day.n))) == {1}
        days = (await session.scalars(select(Day.day))).all()
    assert await ctx.bulk.delete(Day, days) == len(there)


@pytest.mark.parametrize("there", [[], DAYS[::2], [DAYS[1], DAYS[3]], ["9999-12-31", "0001-01-01"], ["infinity"]])
@pytest.mark.parametrize("changes", [None, []])
async def test_upsert_finds_keys_at_the_ends_of_the_calendar(
    context: MakeContext, database: Database, there: list[str], changes: list[str] | None
) -> None:
    async with database.transaction() as session:
        for day in there:
            await session.execute(text(f"INSERT INTO day VALUES ('{day}', 0)"))
    async with database.session() as session:
        days = list(await session.scalars(select(Day.day)))
    new = [day for day in (date.max, date.min, date(2013, 1, 2)) if day not in days]
    written = await context().bulk.upsert(Day, [{"day": day, "n": 1} for day in days + new], update=changes)
    assert written == (len(new) if changes == [] else len(days) + len(new))
    async with database.session() as session:
        rows = (await session.execute(text("SELECT day::text, n FROM day"))).all()
    added = {date.max: "infinity", date.min: "-infinity", date(2013, 1, 2): "2013-01-02"}
    kept = 0 if changes == [] else 1
    assert dict(map(tuple, rows)) == dict.fromkeys(there, kept) | {added[day]: 1 for day in new}


@pytest.mark.parametrize("rows", [1, 5, 20])  # one statement, executemany, and the fast statement
@pytest.mark.parametrize("change", ["update", "delete"])
async def test_object_at_the_end_of_the_calendar_is_never_lost_in_silence(
    context: MakeContext, database: Database, rows: int, change: str
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text(f"INSERT INTO day SELECT date '9999-12-31' - n, 0 FROM generate_series(1, {rows}) n")
        )
        await session.execute(text("UPDATE day SET day = '9999-12-31' WHERE day = '9999-12-30'"))
    async with AsyncSession(database.engine) as plain:  # SQLAlchemy's own: one object is an error, several are silent
        for row in await plain.scalars(select(Day)):
            row.n = 1
        if rows == 1:
            with pytest.raises(StaleDataError):
                await plain.flush()
        else:
            await plain.flush()
            assert await plain.scalar(text("SELECT n FROM day WHERE day = '9999-12-31'")) == 0
    ctx = context()
    with pytest.raises(StaleDataError):
        async for batch in ctx.chunks(select(Day)):
            for row in batch:
                if change == "delete":
                    await batch.session.delete(row)
                else:
                    row.n = 1
    async with database.session() as session:
        assert list(await session.scalars(select(Day.n))) == [0] * rows


async def test_object_whose_key_is_infinity_is_written(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO day VALUES ('infinity', 0), ('-infinity', 0), ('2026-01-01', 0)"))
    ctx = context()
    async for batch in ctx.chunks(select(Day)):
        for row in batch:
            row.n = 1
    async for batch in ctx.chunks(select(Day), name="delete"):
        assert {row.n for row in batch} == {1}
        for row in batch:
            await batch.session.delete(row)
    await ctx._attempt.succeed()
    async with database.session() as session:
        assert list(await session.scalars(select(Day.n))) == []


async def test_a_key_that_stands_for_two_rows_at_the_end_of_the_calendar_is_refused(
    context: MakeContext, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO day VALUES ('9999-12-31', 0), ('infinity', 0)"))
    with pytest.raises(BulkError, match="matches 9999-12-31 and infinity"):
        await context().bulk.update(Day, [{"day": date.max, "n": 1}])
    async with database.session() as session:
        assert set(await session.scalars(select(Day.n))) == {0}


async def test_the_failing_row_is_found_in_tables_with_the_same_columns_of_other_types(context: MakeContext) -> None:
    bulk = context().bulk
    await bulk.insert(Named, [{"id": n, "x": "ok"} for n in range(10)])
    await bulk.insert(Timed, [{"id": n, "x": timedelta(1)} for n in range(10)])
    for _ in range(2):
        with pytest.raises(BulkError) as failed:
            await bulk.update(Named, [{"id": n, "x": "much too long" if n == 7 else "ok"} for n in range(10)])
        assert failed.value.row_index == 7
        with pytest.raises(BulkError) as failed:
            await bulk.update(Timed, [{"id": n, "x": None if n == 3 else timedelta(1)} for n in range(10)])
        assert failed.value.row_index == 3


class Named(Base):
    """Its second column has the name of that of `Timed`."""

    __tablename__ = "named"

    id: Mapped[int] = mapped_column(primary_key=True)
    x: Mapped[str] = mapped_column(String(5))


class Timed(Base):
    """An interval."""

    __tablename__ = "timed"

    id: Mapped[int] = mapped_column(primary_key=True)
    x: Mapped[timedelta] = mapped_column(INTERVAL(), nullable=False)


@pytest.mark.parametrize(
    ("type_", "keys", "statements"),
    [
        (LargeBinary(), [b"", b"\x00\xff", b"a"], 1),
        (LargeBinary(), [b"", bytearray(b"\xff"), b"a"], 3),
        (Numeric(), [Decimal("1.50"), 2, Decimal("-1E+30")], 1),
        (Numeric(), [Decimal("1.5"), Decimal("NaN"), 3], 3),
        (Numeric(10, 2), [Decimal("1.5"), Decimal("2.25"), 3], 1),
        (Numeric(10, 2), [Decimal("1.501"), Decimal("2"), 3], 3),
        (Double(), [1.5, -0.0, 1e300], 1),
        (Double(), [1.5, 2, 2.0**60], 3),
    ],
)
async def test_keys_that_python_compares_as_the_server_does_are_written_by_one_statement(
    context: MakeContext, database: Database, type_: Any, keys: list[Any], statements: int
) -> None:
    table = Table("keyed", MetaData(), Column("key", type_, primary_key=True), Column("n", Integer))
    async with database.engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
        await connection.execute(insert(table), [{"key": key, "n": 0} for key in keys])
        for sql in (
            "CREATE TABLE statements ()",
            "CREATE FUNCTION note_statement() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO statements DEFAULT VALUES; RETURN NULL; END $$",
            "CREATE TRIGGER note AFTER UPDATE ON keyed FOR EACH STATEMENT EXECUTE FUNCTION note_statement()",
        ):
            await connection.execute(text(sql))
    ctx = context()

    assert await ctx.bulk.update(table, [{"key": key, "n": 1} for key in keys]) == len(keys)
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM statements")) == statements
        assert set(await connection.scalars(select(table.c.n))) == {1}
    assert await ctx.bulk.upsert(table, [{"key": key, "n": 2} for key in keys]) == len(keys)
    async with database.engine.connect() as connection:
        assert list(await connection.scalars(select(table.c.n))) == [2] * len(keys)
    assert await ctx.bulk.delete(table, keys) == len(keys)
