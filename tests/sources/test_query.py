"""`Query`: rows of another database, each written once here over restarts and kills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import select
from sqlalchemy.engine import make_url

from tests.models import Author, Base, authors
from tests.support.kills import run_under_kills
from worker import JobContext, Settings, job, load_settings
from worker.db.engine import Database
from worker.errors import SettingsError, UnsupportedStatement, UsageError
from worker.sources import Query
from worker.testing.runner import JobRunner

ROWS = 97


@pytest_asyncio.fixture
async def legacy_url(settings: Settings) -> AsyncIterator[str]:
    """A second database on the server, with authors."""
    plain = make_url(settings.database.url).set(drivername="postgresql", database="postgres")
    admin = await asyncpg.connect(plain.render_as_string(hide_password=False))
    await admin.execute("DROP DATABASE IF EXISTS longhaul_legacy WITH (FORCE)")
    await admin.execute("CREATE DATABASE longhaul_legacy")
    url = plain.set(database="longhaul_legacy").render_as_string(hide_password=False)
    there = Database(load_settings(environment={"DATABASE_URL": url}))
    async with there.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with there.transaction() as session:
        session.add_all([Author(**row) for row in authors(ROWS)])
    await there.close()
    yield url
    await admin.execute("DROP DATABASE longhaul_legacy WITH (FORCE)")
    await admin.close()


@pytest.fixture
def both(settings: Settings, legacy_url: str) -> Settings:
    """Settings with both databases."""
    environment = {"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url}
    return load_settings(environment=environment, overrides={"databases": {"legacy": {"url": legacy_url}}})


@job
async def copy(ctx: JobContext, replica: bool = False, name: str = "legacy", ordered: bool = True) -> int:
    """Copy the authors of the other database."""
    statement = select(Author.id, Author.name, Author.region, Author.code, Author.seen)
    if ordered:
        statement = statement.order_by(Author.id)
    async for batch in ctx.walk(Query(statement, database=name, replica=replica), size=10):
        await batch.bulk.insert(Author, [row._asdict() for row in batch])
        if batch.number == 3 and FAIL:
            raise RuntimeError(FAIL.pop())
    return ctx.rows_done


FAIL: list[str] = []


async def written(database: Database) -> list[int]:
    async with database.session() as session:
        return list(await session.scalars(select(Author.id).order_by(Author.id)))


async def test_each_row_is_copied_once_over_kills(database: Database, settings: Settings, legacy_url: str) -> None:
    last = await run_under_kills(
        settings, "tests.sources.killed", "query", kills=3, seed=8, LONGHAUL_DATABASES__LEGACY__URL=legacy_url
    )
    assert last == f"done {ROWS}"
    assert await written(database) == list(range(1, ROWS + 1))


@pytest.mark.parametrize("replica", [False, True])
async def test_each_row_is_copied_once_over_a_restart(
    database: Database, both: Settings, legacy_url: str, replica: bool
) -> None:
    if replica:  # a server that is no replica has all that it wrote itself
        there = both.databases["legacy"].model_copy(update={"replica_url": both.databases["legacy"].url})
        both = both.model_copy(update={"databases": {"legacy": there}})
    run = JobRunner(database, both)
    FAIL[:] = ["died"]
    with pytest.raises(RuntimeError, match="died"):
        await run.attempt(copy, "run", replica)
    assert await written(database) == list(range(1, 21))
    assert await run.attempt(copy, "run", replica) == ROWS
    assert await written(database) == list(range(1, ROWS + 1))


async def test_a_database_that_the_settings_lack_is_named(database: Database, both: Settings) -> None:
    with pytest.raises(UsageError, match=r"no database 'nowhere' \(they have: legacy\). Add \[databases.nowhere\]"):
        await JobRunner(database, both)(copy, name="nowhere")


async def test_a_result_without_a_key_is_refused(database: Database, both: Settings) -> None:
    with pytest.raises(UnsupportedStatement, match="no key to continue behind"):
        await JobRunner(database, both)(copy, ordered=False)


async def test_a_database_that_is_away_is_named(database: Database, both: Settings) -> None:
    there = both.databases["legacy"].model_copy(update={"url": "postgresql+asyncpg://127.0.0.1:1/x"})
    with pytest.raises(OSError, match="Connect call failed"):
        await JobRunner(database, both.model_copy(update={"databases": {"legacy": there}}))(copy)


def test_databases_are_read_from_file_environment_and_command_line(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[databases.legacy]\nurl = "postgresql://old/x"\nstatement_timeout_seconds = 5\n')
    environment = {"LONGHAUL_DATABASES__LEGACY__REPLICA_URL": "postgresql://copy/x"}
    found = load_settings(file, environment=environment).databases["legacy"]
    assert (found.url, found.replica_url) == ("postgresql+asyncpg://old/x", "postgresql+asyncpg://copy/x")
    assert found.statement_timeout_seconds == 5
    for text, message in (
        (
            '[databases.legacy]\nurll = "x"',
            r"unknown key databases\.legacy\.urll; did you mean databases\.legacy\.url\?",
        ),
        ('[databases]\nlegacy = "postgresql://x"', r"write \[databases\.legacy\]"),
        ("[databases.legacy]\npool_size = -1", r"databases\.legacy\.pool_size = -1"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=message):
            load_settings(file, environment={})
