"""enqueue_in with odd callers: the row is in their transaction, or an error says what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Delete, Engine, Update, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from worker import Client, InvalidArguments, JobContext, Settings, SyncClient, job
from worker.db.engine import Database
from worker.errors import LonghaulError, ServerUnavailable, UsageError


@job
async def greet(ctx: JobContext, name: str) -> None:
    """Do nothing."""


@pytest_asyncio.fixture(params=["asyncpg", "psycopg"])
async def engine(request: pytest.FixtureRequest, settings: Settings, database: Database) -> AsyncIterator[AsyncEngine]:
    """An engine of a service, by each driver."""
    made = create_async_engine(settings.database.url.replace("+asyncpg", f"+{request.param}"))
    yield made
    await made.dispose()


async def names(database: Database) -> list[str]:
    """Return the arguments of the rows that were committed."""
    async with database.session() as session:
        return list(await session.scalars(text("SELECT payload::json -> 'k' ->> 'name' FROM worker.outbox ORDER BY 1")))


def before(statement: str) -> Callable[[AsyncConnection], Awaitable[Any]]:
    """Return a caller that has executed a statement, which may have failed."""

    async def execute(connection: AsyncConnection) -> None:
        with suppress(DBAPIError):
            await connection.execute(text(statement))

    return execute


def with_options(**options: Any) -> Callable[[AsyncConnection], Awaitable[Any]]:
    """Return a caller whose connection has options."""
    return lambda connection: connection.execution_options(**options)


@pytest.mark.parametrize(
    "prepare",
    [
        before("SET LOCAL search_path TO ''"),
        before("SELECT 1"),
        with_options(schema_translate_map={"worker": "elsewhere", None: "elsewhere"}),
        with_options(isolation_level="SERIALIZABLE"),
    ],
    ids=["search_path", "implicit", "translated", "serializable"],
)
async def test_each_call_writes_one_row_into_the_transaction_of_any_caller(
    client: Client, database: Database, engine: AsyncEngine, prepare: Callable[[AsyncConnection], Awaitable[Any]]
) -> None:
    for end in ("rollback", "commit"):
        async with engine.connect() as connection:
            await prepare(connection)
            if not connection.in_transaction():
                await connection.begin()
            async with AsyncSession(connection, autoflush=False) as session:
                await client.enqueue_in(session, greet, f"session, {end}")
                await client.enqueue_in(connection, greet, f"connection, {end}")
                await client.enqueue_many_in(connection, greet, [{"name": f"many, {end}"}])
                with suppress(ZeroDivisionError):
                    async with session.begin_nested():
                        await client.enqueue_in(session, greet, f"savepoint, {end}")
                        raise ZeroDivisionError
            assert await names(database) == []
            await getattr(connection, end)()
    assert await names(database) == ["connection, commit", "many, commit", "session, commit"]


@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 10}], ids=["streaming", "yield_per"])
async def test_the_row_is_written_where_each_statement_would_be_a_cursor_on_the_server(
    client: Client, database: Database, engine: AsyncEngine, options: dict[str, Any]
) -> None:
    async with AsyncSession(engine.execution_options(**options)) as session:
        await client.enqueue_in(session, greet, "Ada")
        await session.commit()
    assert await names(database) == ["Ada"]


@pytest.mark.parametrize(
    ("prepare", "error", "advice"),
    [
        (with_options(isolation_level="AUTOCOMMIT"), InvalidArguments, "use a session with another isolation level"),
        (before("SET TRANSACTION READ ONLY"), ServerUnavailable, "use a session that may write"),
        (before("SELECT 1 / 0"), ServerUnavailable, r"into a savepoint, session\.begin_nested"),
        (before("SET LOCAL ROLE pg_monitor"), UsageError, "`worker grants client ROLE`"),
    ],
    ids=["autocommit", "read_only", "failed", "no_right"],
)
async def test_a_transaction_that_cannot_hold_the_row_is_refused_with_advice(
    client: Client,
    database: Database,
    engine: AsyncEngine,
    prepare: Callable[[AsyncConnection], Awaitable[Any]],
    error: type[LonghaulError],
    advice: str,
) -> None:
    async with engine.connect() as connection:
        await prepare(connection)
        with pytest.raises(error, match=advice):
            await client.enqueue_in(AsyncSession(connection), greet, "Ada")
        await connection.rollback()
        await prepare(connection)
        with pytest.raises(error, match=advice):
            await client.enqueue_many_in(connection, greet, [{"name": "Ada"}])
        await connection.commit()
    assert await names(database) == []


async def test_a_session_that_sends_statements_to_a_standby_is_told_to_pass_a_connection(
    client: Client, database: Database, engine: AsyncEngine
) -> None:
    standby = create_async_engine(engine.url)

    @event.listens_for(standby.sync_engine, "begin")
    def _reads(connection: Any) -> None:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            is_write = self._flushing or isinstance(clause, Update | Delete)
            return engine.sync_engine if is_write else standby.sync_engine

    async with AsyncSession(sync_session_class=RoutingSession) as session:
        with pytest.raises(ServerUnavailable, match="pass a connection to the primary"):
            await client.enqueue_in(session, greet, "Ada")
        await session.rollback()
        await client.enqueue_in(await session.connection(bind_arguments={"bind": engine.sync_engine}), greet, "Ada")
        await session.commit()
    assert await names(database) == ["Ada"]
    await standby.dispose()


async def test_a_transaction_of_two_phases_is_refused_before_it_would_fail_to_be_prepared(
    client: Client, settings: Settings, database: Database, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine, twophase=True) as session:
        with pytest.raises(InvalidArguments, match="use a transaction of one phase, or `enqueue` after its COMMIT"):
            await client.enqueue_in(session, greet, "Ada")
    blocking = create_engine(settings.database.url.replace("+asyncpg", "+psycopg"))
    with SyncClient(settings) as sync, blocking.connect() as connection:
        with connection.begin_twophase(), pytest.raises(InvalidArguments, match="two phases"):
            sync.enqueue_in(connection, greet, "Ada")
        with Session(connection) as one, one.begin():
            sync.enqueue_in(one, greet, "Eve")
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidArguments, match="in AUTOCOMMIT"):
            sync.enqueue_in(connection, greet, "Bob")
    assert await names(database) == ["Eve"]
    blocking.dispose()
