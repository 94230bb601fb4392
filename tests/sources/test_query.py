"""`Query`: rows of another database, each written once here over restarts and kills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from tests.models import Author, Base, authors
from tests.support.kills import run_under_kills
from worker import JobContext, Settings, job, load_settings
from worker.db.engine import Database
from worker.errors import SettingsError, SourceUnavailable, UnsupportedStatement, UsageError
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
        if batch.number == 3 and CUT:
            admin = await asyncpg.connect(CUT.pop())
            others = "datname = current_database() AND pid <> pg_backend_pid()"
            await admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
            await admin.close()
    return ctx.rows_done


FAIL: list[str] = []
CUT: list[str] = []


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


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"port": 1}, ".*Connect call failed"),
        ({"database": "no_such"}, '.*"no_such" does not exist'),
        ({"password": "wrong"}, ".*password authentication failed"),
        ({"host": "no-such-host.invalid"}, ".*"),
    ],
    ids=["port", "database", "password", "host"],
)
async def test_a_database_that_cannot_be_reached_is_named(
    database: Database, both: Settings, parts: dict[str, Any], reason: str
) -> None:
    url = make_url(both.databases["legacy"].url).set(**parts).render_as_string(hide_password=False)
    there = both.databases["legacy"].model_copy(update={"url": url})
    expected = rf"the database 'legacy' cannot be reached: {reason}.* Check its url in \[databases\.legacy\]"
    with pytest.raises(SourceUnavailable, match=expected):
        await JobRunner(database, both.model_copy(update={"databases": {"legacy": there}}))(copy)


async def test_a_table_that_differs_there_is_an_error_and_nothing_is_written(
    database: Database, both: Settings, legacy_url: str
) -> None:
    admin = await asyncpg.connect(legacy_url)
    await admin.execute("ALTER TABLE author DROP COLUMN region")
    with pytest.raises(ProgrammingError, match=r"author\.region does not exist"):
        await JobRunner(database, both)(copy)
    await admin.execute("DROP TABLE author CASCADE")
    with pytest.raises(UnsupportedStatement, match=r"the database 'legacy': .*there is no table author in"):
        await JobRunner(database, both)(copy)
    await admin.close()
    assert await written(database) == []


async def test_a_connection_that_is_lost_there_continues_behind_the_last_row(
    database: Database, both: Settings, legacy_url: str
) -> None:
    run = JobRunner(database, both)
    CUT[:] = [legacy_url]
    with pytest.raises(Exception, match=r"terminat|closed|lost"):
        await run.attempt(copy, "run")
    assert 0 < len(await written(database)) < ROWS
    assert await run.attempt(copy, "run") == ROWS
    assert await written(database) == list(range(1, ROWS + 1))


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
