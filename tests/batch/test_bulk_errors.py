"""Errors of bulk operations: they name the row that is to blame, if there is one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    String,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from tests.models import Author, Base, authors
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.db.errors import sqlstate
from worker.errors import BulkError


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
