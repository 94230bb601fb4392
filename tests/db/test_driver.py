"""The driver below SQLAlchemy, and the private parts of asyncpg and of SQLAlchemy's adapter that it needs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import asyncpg
import pytest
from asyncpg.exceptions import ForeignKeyViolationError
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

from worker.db.driver import Driver, check_private_names, literal, replace_pooled
from worker.db.engine import Database

pytestmark = pytest.mark.asyncio

PRIVATE = [
    (asyncpg.Connection, "asyncpg.Connection", "_get_statement"),
    (AsyncAdapt_asyncpg_connection, "AsyncAdapt_asyncpg_connection", "_transaction"),
    (AsyncAdapt_asyncpg_connection, "AsyncAdapt_asyncpg_connection", "_start_transaction"),
    (AsyncAdapt_asyncpg_connection, "AsyncAdapt_asyncpg_connection", "autocommit"),
]


@pytest.mark.parametrize(("owner", "shown", "name"), PRIVATE)
async def test_check_private_names_names_what_is_missing_and_the_tested_versions(
    monkeypatch: pytest.MonkeyPatch, owner: type, shown: str, name: str
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError, match=r"tested with: asyncpg 0\.32 and SQLAlchemy 2\.1") as missing:
        check_private_names()
    assert f"worker.db needs {shown}.{name}, " in str(missing.value)


async def test_check_private_names_looks_at_the_arguments_of_get_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncpg.Connection, "_get_statement", lambda self, query, timeout: None)
    with pytest.raises(ImportError, match=r"_get_statement\(named=\)"):
        check_private_names()


async def test_check_private_names_runs_at_import() -> None:
    code = "import asyncpg; del asyncpg.Connection._get_statement; import worker.db.driver"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ImportError: worker.db needs asyncpg.Connection._get_statement" in ended.stderr


@pytest.mark.parametrize("commit", [Driver.commit, Driver.commit_and_begin], ids=["commit", "commit_and_begin"])
async def test_commit_and_rollback_raise_the_drivers_own_errors(database: Database, commit: Any) -> None:
    async with database.engine.connect() as connection:
        driver = await Driver.from_connection(connection)
        raw = await driver.begin()
        await raw.execute("CREATE TEMP TABLE one (id int PRIMARY KEY) ON COMMIT DROP")
        await raw.execute("CREATE TEMP TABLE two (id int REFERENCES one DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        await raw.execute("INSERT INTO two VALUES (1)")
        with pytest.raises(ForeignKeyViolationError):
            await commit(driver)
        assert not raw.is_in_transaction()
        if commit is Driver.commit:
            assert not driver.in_transaction
        await driver.rollback()  # after a plain commit nothing is open, and nothing is sent
        assert not driver.in_transaction
        raw = await driver.begin()
        assert await connection.scalar(text("SELECT 1")) == 1
        await raw.close()
        with pytest.raises(asyncpg.InterfaceError):
            await driver.rollback()


async def test_begin_and_commit_are_seen_by_both_sides(database: Database) -> None:
    async with database.engine.connect() as connection:
        driver = await Driver.from_connection(connection)
        assert not driver.in_transaction
        raw = await driver.begin()
        assert driver.in_transaction
        assert raw.is_in_transaction()
        first = await raw.fetchval("SELECT pg_current_xact_id()::text")
        assert await connection.scalar(text("SELECT pg_current_xact_id()::text")) == first
        await connection.commit()
        assert not raw.is_in_transaction()
        assert not driver.in_transaction


@pytest.mark.parametrize("setting", ["on", "off"])
@pytest.mark.parametrize(
    "value", ["", "it's", 'a "\\" b', "\\'", "\n\t", "$1 $2", "ä\U0001f600", None, True, False, -5, 2**62]
)
async def test_values_in_the_text_are_what_they_were(
    database: Database, setting: str, value: str | int | bool | None
) -> None:
    async with database.engine.connect() as connection:
        raw = (await Driver.from_connection(connection)).raw
        await raw.execute(f"SET standard_conforming_strings = {setting}")
        try:
            found = await raw.fetchval(f"SELECT {literal(value)}")
        finally:
            await raw.execute("RESET standard_conforming_strings")
        assert found == value


async def test_a_text_has_no_place_for_nul() -> None:
    with pytest.raises(ValueError, match="NUL"):
        literal("a\x00b")


async def test_replace_pooled_replaces_connections_when_they_are_used_next(database: Database) -> None:
    async def pid() -> int:
        async with database.connection() as connection:
            return int(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)

    before = await pid()
    assert await pid() == before
    replace_pooled(database.engine)
    after = await pid()
    assert after != before
    assert await pid() == after
