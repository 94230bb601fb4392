"""A date at an end of the calendar is written as it was read: 9999-12-31 is not infinity."""

from __future__ import annotations

import copy
import csv
import pickle
from collections.abc import Awaitable, Callable
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ARRAY, Date, insert, select, text
from sqlalchemy.dialects.postgresql import DATERANGE, Range
from sqlalchemy.orm import Mapped, mapped_column

from tests.models import Base
from tests.support.contexts import MakeContext
from tests.support.sampling import sampled
from worker import JobContext, Settings
from worker.batch import Batch
from worker.db.calendar_ends import make_exact
from worker.db.engine import Database
from worker.maintenance import load_file
from worker.testing.runner import JobRunner

DAYS = ["9999-12-31", "infinity", "0001-01-01", "-infinity", "2026-03-01", "9999-12-30"]


class Span(Base):
    """Read."""

    __tablename__ = "span"

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date | None]
    days: Mapped[list[date] | None] = mapped_column(ARRAY(Date))
    range: Mapped[Range[date] | None] = mapped_column(DATERANGE)
    n: Mapped[int] = mapped_column(default=0)


class Copied(Base):
    """Written."""

    __tablename__ = "copied"

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date | None]
    days: Mapped[list[date] | None] = mapped_column(ARRAY(Date))
    range: Mapped[Range[date] | None] = mapped_column(DATERANGE)
    n: Mapped[int] = mapped_column(default=0)


async def fill(database: Database, rows: int) -> None:
    """Insert rows with each of the dates."""
    async with database.transaction() as session:
        for number in range(rows):
            day, last = DAYS[number % len(DAYS)], "9999-12-31" if number % 2 else "infinity"
            await session.execute(
                text(
                    f"INSERT INTO span VALUES ({number}, '{day}', ARRAY['{day}', NULL, '2026-01-01']::date[], "
                    f"'[2026-01-01,{last})', 0)"
                )
            )


async def shown(database: Database, table: str) -> list[Any]:
    """Return the rows of a table as the server writes them."""
    async with database.session() as session:
        rows = await session.execute(text(f"SELECT id, day::text, days::text, range::text FROM {table} ORDER BY id"))
        return [tuple(row) for row in rows]


def as_dict(row: Any) -> dict[str, Any]:
    """Return the values of a row."""
    return {"id": row.id, "day": row.day, "days": row.days, "range": row.range}


async def insert_bulk(batch: Batch[Any]) -> None:
    await batch.bulk.insert(Copied, [as_dict(row) for row in batch])


async def upsert(batch: Batch[Any]) -> None:
    await batch.bulk.upsert(Copied, [as_dict(row) for row in batch])


async def update(batch: Batch[Any]) -> None:
    await batch.session.execute(insert(Copied), [{"id": row.id} for row in batch])
    await batch.bulk.update(Copied, [as_dict(row) for row in batch])


async def add_objects(batch: Batch[Any]) -> None:
    batch.session.add_all([Copied(**as_dict(row)) for row in batch])


async def change_objects(batch: Batch[Any]) -> None:
    await batch.session.execute(insert(Copied), [{"id": row.id} for row in batch])
    by_id = {row.id: row for row in await batch.session.scalars(select(Copied))}
    for row in batch:
        by_id[row.id].day, by_id[row.id].days, by_id[row.id].range = row.day, row.days, row.range


async def core(batch: Batch[Any]) -> None:
    await batch.session.execute(insert(Copied), [as_dict(row) for row in batch])


async def statement(batch: Batch[Any]) -> None:
    for row in batch:
        await batch.session.execute(insert(Copied).values(**as_dict(row)))


WAYS: list[Callable[[Batch[Any]], Awaitable[None]]] = [
    insert_bulk, upsert, update, add_objects, change_objects, core, statement
]  # fmt: skip


def read_objects(ctx: JobContext) -> Any:
    return ctx.chunks(select(Span), size=400)


def read_rows(ctx: JobContext) -> Any:
    return ctx.chunks(select(Span.id, Span.day, Span.days, Span.range), by=[Span.id], size=400)


def read_stream(ctx: JobContext) -> Any:
    return ctx.stream(select(Span.id, Span.day, Span.days, Span.range).order_by(Span.id), size=400)


READS = [read_objects, read_rows, read_stream]
COUNTS = {"few": 6, "many": 300}  # written by statements, and by arrays or COPY
CELLS = {f"{w.__name__}-{r.__name__}-{n}": (w, r, COUNTS[n]) for w, r, n in product(WAYS, READS, COUNTS)}


@pytest.mark.parametrize(("write", "read", "rows"), sampled(CELLS.values(), 5, ids=CELLS))
async def test_dates_are_written_as_they_were_read(
    context: MakeContext, database: Database, rows: int, read: Any, write: Any
) -> None:
    await fill(database, rows)
    ctx = context()
    async for batch in read(ctx):
        await write(batch)
    await ctx._attempt.succeed()
    assert await shown(database, "copied") == await shown(database, "span")


async def test_a_date_of_the_application_is_infinity_as_in_sqlalchemy(context: MakeContext, database: Database) -> None:
    for days in ([date.max, date.min], [make_exact(date.max), make_exact(date.min)]):
        await context().bulk.upsert(Copied, [{"id": number, "day": day} for number, day in enumerate(days)])
        found = [row[1] for row in await shown(database, "copied")]
        assert found == (["infinity", "-infinity"] if type(days[0]) is date else ["9999-12-31", "0001-01-01"])


@pytest.mark.parametrize("day", ["9999-12-31", "infinity", "0001-01-01", "-infinity"])
async def test_a_condition_with_a_date_that_was_read_finds_its_row(database: Database, day: str) -> None:
    async with database.transaction() as session:
        await session.execute(text(f"INSERT INTO span (id, day, n) VALUES (1, '{day}', 0)"))
    async with database.session() as session:
        found = await session.scalar(select(Span.day))
        assert found in (date.max, date.min) and hash(found) in (hash(date.max), hash(date.min))
        for copied in (found, pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
            assert await session.scalar(select(Span.id).where(Span.day == copied)) == 1


async def test_a_value_that_is_no_date_is_refused_as_by_the_driver(context: MakeContext, database: Database) -> None:
    with pytest.raises(Exception, match="no attribute 'toordinal'"):
        await context().bulk.insert(Copied, [{"id": 1, "day": "2026-01-01"}])


async def test_a_date_of_a_file_is_loaded_as_it_is_written(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "spans.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "day"], [1, "9999-12-31"], [2, "0001-01-01"], [3, "2026-03-01"], [4, ""]])
    for options in ({}, {"on_conflict": "update"}):
        job = load_file(Copied, str(path), name="load", **options)  # type: ignore[arg-type]
        assert await JobRunner(database, settings)(job) == 4
        days = [row[1] for row in await shown(database, "copied")]
        assert days == ["9999-12-31", "0001-01-01", "2026-03-01", None]
        async with database.transaction() as session:
            await session.execute(text("UPDATE copied SET day = NULL"))
            if not options:
                await session.execute(text("DELETE FROM copied WHERE id > 2"))
