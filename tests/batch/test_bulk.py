"""Bulk operations, on a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.conftest import MakeContext
from tests.models import Author, Mood, Sample, authors
from worker.db.engine import Database
from worker.errors import BulkError

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


async def test_a_copy_first_in_a_transaction_goes_with_its_rollback(context: MakeContext, database: Database) -> None:
    ctx = context()
    await ctx.bulk.insert(Sample, [{"id": 1}])
    with pytest.raises(RuntimeError):
        async for batch in ctx.chunks(select(Sample), lock=False):
            await batch.bulk.insert(Author, authors(500))  # the first statement of this transaction
            raise RuntimeError
    await ctx.fail()
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Author)) == 0
