"""Connections for PgBouncer: they neither rely on session state nor leave it behind.

These tests need no PgBouncer; tests/pgbouncer has a real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import select, text

from tests.models import Author, Mood, Sample
from worker import Settings, load_settings
from worker.db.driver import Driver
from worker.db.engine import Database, unavailable
from worker.job.propagation import current_job
from worker.testing.runner import JobRunner

NAMES = ("application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit")
SHOW = "SELECT " + ", ".join(f"current_setting('{name}')" for name in NAMES)


@pytest_asyncio.fixture
async def pooled(settings: Settings, database: Database) -> AsyncIterator[Database]:
    """The same database as if PgBouncer were there, by one connection."""
    said = {"pgbouncer": True, "lock_timeout_seconds": 2.5, "pool_size": 1, "application_name": "o'hare"}
    there = settings.model_copy(update={"database": settings.database.model_copy(update=said)})
    opened = Database(there, "test", job_name=current_job.get)
    yield opened
    await opened.close()


async def test_a_server_of_our_own_is_told_from_pgbouncer(settings: Settings) -> None:
    database = Database(settings)
    await database.check()
    assert database.pooled is False
    await database.close()


async def test_settings_hold_for_a_transaction_and_no_longer(pooled: Database) -> None:
    async with pooled.engine.connect() as connection:
        driver = await Driver.from_connection(connection)
        before = list(await driver.raw.fetchrow(SHOW))
        job = current_job.set("walk")
        async with driver.reading() as raw:
            assert list(await raw.fetchrow(SHOW))[:4] == ["o'hare:test:walk", "5min", "2500ms", "1min"]
        current_job.reset(job)
        assert list(await driver.raw.fetchrow(SHOW)) == before
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        assert await connection.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert await connection.scalar(text("SHOW lock_timeout")) == "2500ms"


async def test_no_statement_keeps_a_name(pooled: Database) -> None:
    async with pooled.transaction() as session:
        session.add(Sample(mood=Mood.wild, data={"a": 1}))  # types that the driver has to look up
        await session.flush()
        raw = (await Driver.from_connection(await session.connection())).raw
        records = [(number, "n", 1, f"c{number}", 0) for number in range(3)]
        await raw.copy_records_to_table("author", records=records, columns=["id", "name", "region", "code", "seen"])
        first, second = await raw.prepare("SELECT 1"), await raw.prepare("SELECT 2")
        cursor = await raw.cursor("SELECT generate_series(1, 3)")
        assert await raw.fetch("SELECT name FROM pg_prepared_statements") == []
        assert [await first.fetchval(), await second.fetchval(), await first.fetchval()] == [1, 2, 1]
        assert await cursor.fetch(5) == [(1,), (2,), (3,)]


async def test_a_walk_reads_what_a_column_has_become(pooled: Database) -> None:
    """A statement of the previous batch would be decoded with the column's old type."""
    async with pooled.transaction() as session:
        session.add_all([Author(id=n, name="n", region=n, code=f"c{n}", seen=0) for n in range(1, 7)])
    ctx = JobRunner(pooled, load_settings(environment={})).context()
    seen = []
    async for batch in ctx.chunks(select(Author.id, Author.region), size=2, lock=False):
        seen += [row.region for row in batch]
        if len(seen) == 4:  # both statements of the walk are prepared
            async with pooled.transaction() as session:
                await session.execute(text("ALTER TABLE author ALTER region TYPE bigint USING region + 10000000000"))
    assert seen == [1, 2, 3, 4, 10_000_000_005, 10_000_000_006]
    await ctx._attempt.close()


async def test_the_ledger_names_no_backend_that_is_not_the_runs_alone(pooled: Database) -> None:
    ctx = JobRunner(pooled, load_settings(environment={})).context("test", "run")
    await ctx._attempt.durable_run()
    async with pooled.session() as session:
        row = (await session.execute(text("SELECT state, backend_pid, backend_start FROM worker.run"))).one()
    assert tuple(row) == ("running", None, None)
    await ctx._attempt.close()


def test_what_pgbouncer_refuses_is_told_with_what_to_do(settings: Settings) -> None:
    refused = ConnectionError("unsupported startup parameter: statement_timeout")
    assert str(unavailable(refused, settings)).endswith("leave database.pgbouncer at auto, or set it to true")
    refused = ConnectionError("transaction blocks not allowed in statement pooling mode")
    assert str(unavailable(refused, settings)).endswith("set pool_mode = transaction in PgBouncer")
