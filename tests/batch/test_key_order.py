"""A walk whose order no index has is refused, unless it may sort."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from sqlalchemy import delete, select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker.errors import UnsupportedStatement
from worker.types import Database

REGION_AND_ID = [Author.region, Author.id]


async def change(database: Database, *commands: str) -> None:
    async with database.transaction() as session:
        for command in commands:
            await session.execute(text(command))


async def walk(context: MakeContext, statement: Any = None, **options: Any) -> int:
    ctx = context()
    statement = select(Author) if statement is None else statement
    async with ctx.chunks(statement, size=10, **options) as batches:
        async for _ in batches:
            pass
    return ctx.rows_done


@pytest.mark.parametrize(
    "options", [{}, {"lock": False}, {"skip_locked": True}], ids=["locked", "unlocked", "skip_locked"]
)
async def test_chunks_without_an_index_are_refused_with_the_statement_that_creates_it(
    context: MakeContext, database: Database, options: dict[str, Any]
) -> None:
    await fill_authors(database, 30)
    cure = "CREATE INDEX CONCURRENTLY ON author (region, id)"
    with pytest.raises(UnsupportedStatement, match=re.escape(cure)):
        await walk(context, by=REGION_AND_ID, **options)
    await change(database, cure.replace(" CONCURRENTLY", ""))
    assert await walk(context, by=REGION_AND_ID, **options) == 30


async def test_sweep_without_an_index_is_refused(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 30)
    with pytest.raises(UnsupportedStatement, match="allow_sort=True"):
        await context().sweep(delete(Author), by=REGION_AND_ID)
    assert await context().sweep(delete(Author), by=REGION_AND_ID, allow_sort=True, size=7) == 30


async def test_allow_sort_walks_and_logs_the_missing_index(
    context: MakeContext, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await fill_authors(database, 30)
    with caplog.at_level(logging.WARNING, "longhaul.batch"):
        assert await walk(context, by=REGION_AND_ID, allow_sort=True) == 30
    assert "cure='CREATE INDEX CONCURRENTLY ON author (region, id)'" in caplog.text


@pytest.mark.parametrize(
    ("index", "by", "where", "is_served"),
    [
        ("(region, id)", [Author.region, Author.id], None, True),
        ("(region, id)", [Author.region.desc(), Author.id.desc()], None, True),
        ("(region, id)", [Author.region.desc(), Author.id], None, False),
        ("(region DESC, id)", [Author.region, Author.id.desc()], None, True),
        ("(region, id, name)", [Author.region, Author.id], None, True),
        ("(id, region)", [Author.region, Author.id], None, False),
        ("(region NULLS FIRST, id)", [Author.region, Author.id], None, False),
        ("USING hash (region)", [Author.region, Author.id], None, False),
        ("(region, id) WHERE seen = 0", [Author.region, Author.id], None, False),
        ("(region, id) WHERE seen = 0", [Author.region, Author.id], Author.seen == 0, True),
        ("(code, id)", [Author.id, Author.code], Author.code == "c1", True),
        ("(name, region, id)", [Author.region, Author.id], Author.name == "n1", True),
        ("(name, region, id)", [Author.region, Author.id], Author.name > "n1", False),
        ("(name text_pattern_ops, id)", [Author.name, Author.id], None, False),
        ("(region)", [Author.region, Author.id], None, False),
        ("(name)", [Author.name, Author.id], None, True),  # few rows have the same name
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_order_is_served_by_an_index_in_its_direction_that_the_statement_can_use(
    context: MakeContext, database: Database, index: str, by: list[Any], where: Any, is_served: bool
) -> None:
    await fill_authors(database, 30)
    await change(
        database,
        "INSERT INTO author (id, name, region, code, seen) SELECT i, 'n' || i, i % 7, 'x' || i, 0 "
        "FROM generate_series(31, 8000) AS i",
        "ALTER TABLE author DROP CONSTRAINT author_region_code_key",
        f"CREATE INDEX ON author {index}",
        "ANALYZE author",
    )
    statement = select(Author.id) if where is None else select(Author.id).where(where)
    if is_served:
        await walk(context, statement.where(Author.id < 50), by=by)
    else:
        with pytest.raises(UnsupportedStatement, match="no index has the order"):
            await walk(context, statement.where(Author.id < 50), by=by)
