"""AUTOCOMMIT has no transaction that commits a batch with its cursor: it is rejected from every source."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import load_settings
from worker.db.engine import Database
from worker.errors import SettingsError, UsageError

OPTIONS = {"isolation_level": "AUTOCOMMIT"}


async def seen(database: Database) -> int:
    async with database.session() as session:
        return int(await session.scalar(select(func.sum(Author.seen))) or 0)


@pytest.fixture
async def rows(database: Database) -> None:
    await fill_authors(database, 10)


def test_in_the_url() -> None:
    with pytest.raises(SettingsError, match="isolation_level cannot be set in the URL"):
        load_settings(environment={"DATABASE_URL": "postgresql://host/db?isolation_level=AUTOCOMMIT"})


async def test_as_an_option_of_the_engine(database: Database) -> None:
    with pytest.raises(UsageError, match="an engine in AUTOCOMMIT has no transactions"):
        database.engine.execution_options(**OPTIONS)
    assert database.engine.execution_options(isolation_level="SERIALIZABLE")


@pytest.mark.parametrize("lock", [True, False], ids=["locked", "unlocked"])
async def test_in_a_batch(context: MakeContext, database: Database, rows: None, lock: bool) -> None:
    ctx = context()
    with pytest.raises(UsageError, match="a batch in AUTOCOMMIT has no transactions"):
        async for batch in ctx.chunks(select(Author), size=5, lock=lock):
            for author in batch:
                author.seen = 1
            await batch.session.connection(execution_options=OPTIONS)
    assert await seen(database) == 0


async def test_in_a_transaction(context: MakeContext) -> None:
    with pytest.raises(UsageError, match=r"a transaction\(\) scope in AUTOCOMMIT"):
        async with context().transaction() as session:
            await session.connection(execution_options=OPTIONS)


async def test_with_an_engine_of_somebody_elses(context: MakeContext, database: Database, rows: None) -> None:
    ours = database.engine
    database.engine = create_async_engine(ours.url, isolation_level="AUTOCOMMIT")
    ctx = context()
    try:
        with pytest.raises(UsageError, match="a connection in AUTOCOMMIT has no transactions"):
            async for batch in ctx.chunks(select(Author), size=5):
                for author in batch:
                    author.seen = 1
        await ctx._attempt.close()
    finally:
        await database.engine.dispose()
        database.engine = ours
    assert await seen(database) == 0


async def test_a_plain_session_may_have_it(context: MakeContext, database: Database, rows: None) -> None:
    async with context().session() as session:
        await session.connection(execution_options=OPTIONS)
        await session.execute(text("VACUUM author"))
    async with database.session() as session:  # the same connection, which is as it was
        await session.execute(text("UPDATE author SET seen = 1"))
        await session.rollback()
    assert await seen(database) == 0
