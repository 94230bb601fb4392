"""Bulk operations by keys at the ends of the calendar, and by keys that Python and the server compare alike or not."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from tests.models import Base
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.errors import BulkError


class Day(Base):
    """Its key is a date."""

    __tablename__ = "day"

    day: Mapped[date] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=0)


class Moment(Base):
    """Its key is a time."""

    __tablename__ = "moment"

    at: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=0)


LAST = "9999-12-31 23:59:59.999999"
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
            text(
                f"INSERT INTO moment SELECT timestamp '{LAST}' - n * interval '1 s', 0 "
                f"FROM generate_series(1, {rows}) n"
            )
        )
        await session.execute(text(f"UPDATE moment SET at = '{LAST}' WHERE at = timestamp '{LAST}' - interval '1 s'"))
    async with AsyncSession(database.engine) as plain:  # SQLAlchemy's own: one object is an error, several are silent
        for row in await plain.scalars(select(Moment)):
            row.n = 1
        if rows == 1:
            with pytest.raises(StaleDataError):
                await plain.flush()
        else:
            await plain.flush()
            assert await plain.scalar(text(f"SELECT n FROM moment WHERE at = '{LAST}'")) == 0
    ctx = context()
    with pytest.raises(StaleDataError):
        async for batch in ctx.chunks(select(Moment)):
            for row in batch:
                if change == "delete":
                    await batch.session.delete(row)
                else:
                    row.n = 1
    async with database.session() as session:
        assert list(await session.scalars(select(Moment.n))) == [0] * rows


async def change_and_delete_days(context: MakeContext, database: Database) -> None:
    """Change the object of each day in one walk, and delete it in another one."""
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


@pytest.mark.parametrize("rows", [1, 5, 20])
async def test_object_whose_key_is_the_last_date_is_written(
    context: MakeContext, database: Database, rows: int
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text(f"INSERT INTO day SELECT date '9999-12-31' - n, 0 FROM generate_series(0, {rows}) n")
        )
    await change_and_delete_days(context, database)


async def test_object_whose_key_is_infinity_is_written(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO day VALUES ('infinity', 0), ('-infinity', 0), ('2026-01-01', 0)"))
    await change_and_delete_days(context, database)


async def test_a_key_that_stands_for_two_rows_at_the_end_of_the_calendar_is_refused(
    context: MakeContext, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO day VALUES ('9999-12-31', 0), ('infinity', 0)"))
    with pytest.raises(BulkError, match="matches 9999-12-31 and infinity"):
        await context().bulk.update(Day, [{"day": date.max, "n": 1}])
    async with database.session() as session:
        assert set(await session.scalars(select(Day.n))) == {0}


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
