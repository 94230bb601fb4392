"""One engine a process: its sessions on the server."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tests.support.contexts import MakeContext
from worker import JobContext, Settings, job, load_settings
from worker.db.engine import Database

names: list[str] = []


@job
async def tell_name(ctx: JobContext) -> None:
    """Record the name of this connection in pg_stat_activity."""
    async with ctx.session() as session:
        names.append(str(await session.scalar(text("SHOW application_name"))))


async def test_connections_are_named_after_worker_and_job(context: MakeContext, database: Database) -> None:
    names.clear()
    ctx = context()
    await ctx._attempt.run(tell_name, ctx, {})
    assert names == ["longhaul:test:tell_name"]
    async with database.session() as session:  # the same connection, without a job
        assert await session.scalar(text("SHOW application_name")) == "longhaul:test"


async def test_timeouts_of_the_settings_are_in_force(settings: Settings) -> None:
    limits = {"statement_timeout_seconds": 1.5, "idle_in_transaction_timeout_seconds": 2.5}
    database = Database(settings.model_copy(update={"database": settings.database.model_copy(update=limits)}))
    async with database.session() as session:
        assert await session.scalar(text("SHOW statement_timeout")) == "1500ms"
        assert await session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "2500ms"
    await database.close()


def test_the_pool_is_sized_so_that_no_job_waits_for_another() -> None:
    for max_jobs in (1, 10, 100):
        settings = load_settings(environment={}, overrides={"worker": {"max_jobs": max_jobs}})
        assert settings.pool_size + settings.max_overflow >= 2 * max_jobs + 1
        assert settings.pool_warning() is None


async def test_the_pool_of_the_settings_is_the_engines(settings: Settings) -> None:
    small = {"pool_size": 1, "max_overflow": 1, "pool_timeout_seconds": 0.05}
    database = Database(settings.model_copy(update={"database": settings.database.model_copy(update=small)}))
    async with database.connection(), database.connection():
        with pytest.raises(PoolTimeout):
            async with database.connection():
                pytest.fail("a third connection was given")
    await database.close()


async def test_objects_stay_as_they_are_after_a_commit(database: Database) -> None:
    assert database.sessions.kw["expire_on_commit"] is False


async def test_a_connection_that_the_server_has_ended_is_replaced(database: Database) -> None:
    async with database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
    async with database.session() as session, database.session() as other:
        if await session.scalar(text("SELECT pg_backend_pid()")) != pid:
            session, other = other, session
        await other.scalar(text("SELECT 1"))
    async with database.session() as session:
        mine = await session.scalar(text("SELECT pg_backend_pid()"))
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'longhaul:test' "
                "AND pid <> :mine"
            ),
            {"mine": mine},
        )
    await asyncio.gather(*(_ping(database) for _ in range(5)))


async def _ping(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("SELECT pg_sleep(0.02)"))
