"""A cursor or an upper bound that was changed by hand ends the walk with one clear error, and no row is done twice."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from tests.support.sampling import sampled
from worker import JobContext
from worker.db.engine import Database
from worker.errors import CursorMismatch, LedgerDamaged

ROWS, SIZE = 40, 10
#: JSON lists that are not the key of a row whose key is an integer; the schema forbids others.
NO_KEYS = [
    "[true]",
    "[1.5]",
    "[1e30]",
    "[2147483648]",
    "[null]",
    '["x"]',
    '["1_0"]',
    "[[1]]",
    '[{"a": 1}]',
    f"[{'[' * 2_000}{']' * 2_000}]",
]
#: As a worker does it: a trigger refuses the same without `updated_at`.
MOVE = "UPDATE worker.step SET {} = CAST(:value AS jsonb), updated_at = pg_catalog.clock_timestamp()"
FORBIDDEN = ["[1, 2]", "[]", "{}", "5", '"x"']


async def walk(ctx: JobContext, *, dies: bool) -> None:
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        await batch.session.execute(update(Author).where(Author.id.in_(list(batch))).values(seen=Author.seen + 1))
        if dies and batch.number == 2:
            raise RuntimeError("in the middle")


@pytest.mark.parametrize("column", ["cursor", "upper_bound"])
@pytest.mark.parametrize("value", sampled(NO_KEYS, 2))
async def test_walk_with_a_key_that_is_none_ends_with_one_error(
    context: MakeContext, database: Database, column: str, value: str
) -> None:
    await fill_authors(database, ROWS)
    with pytest.raises(RuntimeError, match="in the middle"):
        await walk(context("run"), dies=True)
    before = await count_seen(database)
    async with database.connection() as connection:
        await connection.execute(text(MOVE.format(column)), {"value": value})
    with pytest.raises((CursorMismatch, LedgerDamaged), match=r"enqueue the job|worker\.step|run"):
        await walk(context("run"), dies=False)
    assert await count_seen(database) == before


@pytest.mark.parametrize("column", ["cursor", "upper_bound"])
async def test_schema_forbids_what_has_not_the_parts_of_the_key(
    context: MakeContext, database: Database, column: str
) -> None:
    await fill_authors(database, ROWS)
    with pytest.raises(RuntimeError, match="in the middle"):
        await walk(context("run"), dies=True)
    for value in FORBIDDEN:
        with pytest.raises(IntegrityError, match="fits_key"):
            async with database.connection() as connection:
                await connection.execute(text(MOVE.format(column)), {"value": value})
