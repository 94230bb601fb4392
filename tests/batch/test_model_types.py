"""Columns that a model declares as text, and that the database has as another type, are walked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, Text, select, text

from tests.support.contexts import MakeContext
from worker.db.engine import Database

_TYPES = ("uuid", "inet", "int", "jsonb", "char(40)", "feeling", "text")
_NAMES = [f"column_{number}" for number in range(len(_TYPES))]
THINGS = Table(
    "thing",
    MetaData(),
    Column("id", Integer, primary_key=True),
    *[Column(name, String(40) if place % 2 else Text) for place, name in enumerate(_NAMES)],
    Column("picture", LargeBinary),
)


@pytest_asyncio.fixture
async def things(database: Database) -> AsyncIterator[None]:
    """Three rows."""
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(_NAMES, _TYPES, strict=True))
    values = "gen_random_uuid(), '10.0.0.1', n, '{}', 'a', 'good', 'text', '\\x00'"
    async with database.engine.begin() as connection:
        for statement in (
            "CREATE TYPE feeling AS ENUM ('good')",
            f"CREATE TABLE thing (id int PRIMARY KEY, {columns}, picture bytea)",
            f"INSERT INTO thing SELECT n, {values} FROM generate_series(1, 3) AS n",
        ):
            await connection.execute(text(statement))
    yield
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP TABLE thing"))
        await connection.execute(text("DROP TYPE feeling"))


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("loop", ["chunks", "stream"])
async def test_a_column_that_is_no_text_in_the_database_is_walked(context: MakeContext, loop: str) -> None:
    ctx, rows = context(), select(THINGS)
    walk = ctx.chunks(rows) if loop == "chunks" else ctx.stream(rows.order_by(THINGS.c.id))
    found = [row.id async for batch in walk for row in batch]
    assert found == [1, 2, 3]
    await ctx._attempt.succeed()
