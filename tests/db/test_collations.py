"""A collation whose version has changed: doctor reports it, and a walk by its texts is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Column, Integer, MetaData, String, Table, delete, select, text

from worker import JobContext, Settings
from worker.db.collations import find_changed_collations
from worker.db.engine import Database
from worker.db.migrate import migrate
from worker.doctor import examine
from worker.errors import UnsupportedStatement
from worker.testing.runner import JobRunner

metadata = MetaData()
BY_TEXT = Table(
    "by_text", metadata, Column("code", String, primary_key=True), Column("id", Integer, unique=True, nullable=False)
)
BY_OWN = Table("by_own", metadata, Column("code", String(collation="changing"), primary_key=True))
BY_C = Table("by_c", metadata, Column("code", String(collation="C"), primary_key=True))


@pytest_asyncio.fixture
async def own(settings: Settings, database: Database) -> AsyncIterator[tuple[Database, Settings]]:
    """A database of this test alone, whose recorded versions it may change."""
    name = "collations_of_a_test"
    async with database.engine.connect() as admin:
        await admin.execution_options(isolation_level="AUTOCOMMIT")
        await admin.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        await admin.execute(text(f"CREATE DATABASE {name}"))
    url = settings.database.url.rpartition("/")[0] + f"/{name}"
    there = settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
    opened = Database(there, "test")
    try:
        await migrate(opened)
        async with opened.engine.begin() as connection:
            await connection.execute(text("CREATE COLLATION changing (provider = libc, locale = 'C.utf8')"))
            await connection.run_sync(metadata.create_all)
            for table in ("by_text (code, id) VALUES ('a', 1), ('b', 2)", "by_own VALUES ('a')", "by_c VALUES ('a')"):
                await connection.execute(text(f"INSERT INTO {table}"))
        yield opened, there
    finally:
        await opened.close()
        async with database.engine.connect() as admin:
            await admin.execution_options(isolation_level="AUTOCOMMIT")
            await admin.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


async def change(database: Database, what: str) -> None:
    """Record another version of the collation than the one in use."""
    statements = {
        "database": "UPDATE pg_database SET datcollversion = 'x' WHERE datname = current_database()",
        "collation": "UPDATE pg_collation SET collversion = 'x' WHERE collname = 'changing'",
    }
    async with database.engine.begin() as connection:
        if what == "database" and (connection.dialect.server_version_info or ()) < (15,):
            pytest.skip("PostgreSQL 14 has no version of the database")
        await connection.execute(text(statements[what]))


async def walk(database: Database, settings: Settings, kind: str, table: Table, by: Any = None) -> int:
    """Walk a table, and return the rows."""
    runner = JobRunner(database, settings)
    ctx: JobContext = runner.context()
    options = {} if by is None else {"by": by}
    try:
        if kind == "sweep":
            return await ctx.sweep(delete(table), size=10, **options)
        async for _ in ctx.chunks(select(table), size=10, **options):
            pass
        return ctx.rows_done
    finally:
        await ctx._attempt.close()
        runner.close()


@pytest.mark.parametrize("kind", ["chunks", "sweep"])
@pytest.mark.parametrize(
    ("changed", "table", "cure"),
    [
        ("database", BY_TEXT, "ALTER DATABASE collations_of_a_test REFRESH COLLATION VERSION"),
        ("collation", BY_OWN, "ALTER COLLATION public.changing REFRESH VERSION"),
    ],
)
async def test_a_walk_by_a_text_of_a_changed_collation_is_refused(
    own: tuple[Database, Settings], kind: str, changed: str, table: Table, cure: str
) -> None:
    await change(own[0], changed)
    with pytest.raises(UnsupportedStatement, match="REINDEX") as caught:
        await walk(*own, kind, table)
    assert cure in str(caught.value) and "could omit rows" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "table", "by", "rows"),
    [
        (None, BY_TEXT, None, 2),
        (None, BY_OWN, None, 1),
        ("database", BY_TEXT, BY_TEXT.c.id, 2),
        ("database", BY_C, None, 1),
        ("collation", BY_TEXT, None, 2),
        ("collation", BY_C, None, 1),
    ],
)
async def test_other_walks_are_not_refused(
    own: tuple[Database, Settings], changed: str | None, table: Table, by: Any, rows: int
) -> None:
    if changed is not None:
        await change(own[0], changed)
    assert await walk(*own, "chunks", table, by) == rows


@pytest.mark.parametrize(
    ("changed", "words"),
    [("database", "the default of database collations_of_a_test"), ("collation", "collation changing")],
)
async def test_doctor_names_a_changed_collation_until_its_version_is_refreshed(
    own: tuple[Database, Settings], changed: str, words: str
) -> None:
    database, settings = own
    assert (await examine(settings))["postgres collations"].level == "fine"
    await change(database, changed)
    finding = (await examine(settings))["postgres collations"]
    assert finding.level == "wrong" and words in finding.message and "REINDEX" in finding.advice
    async with database.engine.begin() as connection:
        assert len(await find_changed_collations(connection)) == 1
        if changed == "database":
            await connection.execute(
                text("UPDATE pg_database SET datcollversion = NULL WHERE datname = current_database()")
            )
        await connection.execute(text("UPDATE pg_collation SET collversion = NULL"))
        assert await find_changed_collations(connection) == []
