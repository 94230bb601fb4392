"""Commands on half-open connections end; commands that the server works on do not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support.proxy import Proxy, proxied
from tests.support.waiting import until_true
from worker import Settings
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.errors import is_unavailable
from worker.db.watched import tcp_options

#: Longest end of a command on a dead connection, on a busy machine.
BOUND_SECONDS = 60.0


class Scene:
    """A database behind a proxy."""

    def __init__(self, settings: Settings, proxy: Proxy) -> None:
        self.settings = settings
        self.proxy = proxy

    def open(self, **values: Any) -> Database:
        url = make_url(self.settings.database.url).set(port=self.proxy.port).render_as_string(hide_password=False)
        changes = {"url": url, "answer_check_seconds": 0.2} | values
        return Database(
            self.settings.model_copy(update={"database": self.settings.database.model_copy(update=changes)})
        )


@pytest_asyncio.fixture
async def scene(settings: Settings, database: Database) -> AsyncIterator[Scene]:
    port = make_url(settings.database.url).port
    assert port is not None
    async with proxied(port) as proxy:
        yield Scene(settings, proxy)


async def send_query(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT 2"))


async def send_rows(connection: AsyncConnection) -> None:
    statement = text("SELECT CAST(:a AS int)")
    await connection.execute(statement, [{"a": number} for number in range(50_000)])


async def send_commit(connection: AsyncConnection) -> None:
    await connection.commit()


async def send_rollback(connection: AsyncConnection) -> None:
    await connection.rollback()


async def send_copy(connection: AsyncConnection) -> None:
    raw = (await Driver.from_connection(connection)).raw
    await raw.copy_records_to_table("pg_temp_copy", records=[(number, "x" * 100) for number in range(20_000)])


async def send_simple(connection: AsyncConnection) -> None:
    await (await Driver.from_connection(connection)).raw.execute("SELECT 1; SELECT 2")


async def send_cancelled(connection: AsyncConnection) -> None:
    """Cancel a command: asyncpg waits for the answer to the cancellation before the next command."""
    raw = (await Driver.from_connection(connection)).raw
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await raw.fetch("SELECT 3")
    await raw.fetch("SELECT 4")


SENDS = [send_query, send_rows, send_commit, send_rollback, send_copy, send_simple, send_cancelled]


@pytest.mark.parametrize("send", SENDS, ids=lambda send: send.__name__)
async def test_command_on_a_half_open_connection_ends(
    scene: Scene, send: Callable[[AsyncConnection], Awaitable[None]]
) -> None:
    await lose(scene, send, new=False)


@pytest.mark.parametrize(
    "send",
    [pytest.param(send, marks=() if send is send_commit else pytest.mark.long) for send in SENDS],
    ids=lambda send: send.__name__,
)
async def test_command_to_a_server_that_is_away_ends(
    scene: Scene, send: Callable[[AsyncConnection], Awaitable[None]]
) -> None:
    await lose(scene, send, new=True)


async def lose(scene: Scene, send: Callable[[AsyncConnection], Awaitable[None]], *, new: bool) -> None:
    """Send a command into a black hole, then use the database again."""
    database = scene.open(connect_timeout_seconds=0.5)
    async with asyncio.timeout(BOUND_SECONDS):
        with pytest.raises((DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError)) as caught:
            async with database.connection() as connection:
                await connection.execute(text("CREATE TEMP TABLE pg_temp_copy (a int, b text)"))
                scene.proxy.swallow(new=new)
                await send(connection)
        scene.proxy.restore()
        async with database.session() as session:
            assert await session.scalar(text("SELECT 5")) == 5
        await database.close()
    assert is_unavailable(caught.value), caught.value


async def test_pooled_connections_that_are_half_open_are_replaced(scene: Scene) -> None:
    database = scene.open()
    async with database.connection(), database.connection(), database.connection():
        pass
    scene.proxy.swallow()
    async with asyncio.timeout(BOUND_SECONDS):
        async with database.connection() as first, database.connection() as second:
            assert [await each.scalar(text("SELECT 1")) for each in (first, second)] == [1, 1]
        await database.close()


async def test_close_of_half_open_connections_takes_a_limited_time(scene: Scene) -> None:
    database = scene.open()
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(database.connection())
    scene.proxy.swallow(new=True)
    before = time.monotonic()
    await database.close()
    assert time.monotonic() - before < 20


async def looks(scene: Scene, count: int) -> None:
    """Wait until the server was asked so often."""
    before = scene.proxy.opened
    await until_true(lambda: scene.proxy.opened >= before + count)


async def test_command_that_waits_for_a_lock_is_not_ended(scene: Scene) -> None:
    database = scene.open(answer_check_seconds=0.05)
    async with database.connection() as holder, database.connection() as waiter:
        await holder.execute(text("SELECT pg_advisory_xact_lock(7)"))
        waiting = asyncio.create_task(waiter.scalar(text("SELECT pg_advisory_xact_lock(7) IS NULL")))
        await looks(scene, 4)
        assert not waiting.done()
        await holder.rollback()
        assert await waiting is False
    await database.close()


async def test_copy_whose_rows_the_job_makes_slowly_is_not_ended(scene: Scene) -> None:
    database = scene.open(answer_check_seconds=0.05)

    async def rows() -> AsyncIterator[tuple[int]]:
        for number in range(3):
            yield (number,)
            await looks(scene, 2)

    async with database.connection() as connection:
        await connection.execute(text("CREATE TEMP TABLE slowly (a int)"))
        raw = (await Driver.from_connection(connection)).raw
        await raw.copy_records_to_table("slowly", records=rows())
        assert await connection.scalar(text("SELECT count(*) FROM slowly")) == 3
    await database.close()


async def test_copy_whose_rows_the_job_takes_slowly_is_not_ended(scene: Scene) -> None:
    database = scene.open(answer_check_seconds=0.05)
    taken = bytearray()

    async def take(data: bytes) -> None:
        if not taken:
            await looks(scene, 4)
        taken.extend(data)

    async with database.connection() as connection:
        raw = (await Driver.from_connection(connection)).raw
        await raw.copy_from_query("SELECT generate_series(1, 100)", output=take)
    assert taken.count(b"\n") == 100
    await database.close()


async def test_without_the_servers_view_the_statement_timeout_limits_the_wait(scene: Scene) -> None:
    database = scene.open(statement_timeout_seconds=0.5)
    async with asyncio.timeout(BOUND_SECONDS), database.engine.connect() as connection:
        await connection.execute(text("SET track_activities = off"))
        scene.proxy.swallow()
        with pytest.raises(DBAPIError, match="longer than database"):
            await connection.execute(text("SELECT 1"))
    await database.close()


async def test_through_pgbouncer_the_statement_timeout_limits_the_wait(scene: Scene) -> None:
    database = scene.open(statement_timeout_seconds=0.5, pgbouncer=True)
    async with asyncio.timeout(BOUND_SECONDS), database.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        scene.proxy.swallow()
        with pytest.raises(DBAPIError, match="longer than database"):
            await connection.execute(text("SELECT 1"))
    await database.close()


async def test_server_without_room_for_another_connection_ends_none(scene: Scene, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("CREATE ROLE crowded LOGIN SUPERUSER PASSWORD 'c'"))
    url = make_url(scene.settings.database.url).set(port=scene.proxy.port, username="crowded", password="c")
    crowded = scene.open(answer_check_seconds=0.05, url=url.render_as_string(hide_password=False))
    try:
        async with crowded.connection() as connection:
            async with database.transaction() as session:
                await session.execute(text("ALTER ROLE crowded NOSUPERUSER CONNECTION LIMIT 1"))
            waiting = asyncio.create_task(connection.scalar(text("SELECT pg_sleep(600) IS NULL")))
            await looks(scene, 4)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait({waiting})
            await connection.rollback()
    finally:
        await crowded.close()
        async with database.transaction() as session:
            await session.execute(text("DROP ROLE crowded"))


@pytest.mark.parametrize("pgbouncer", [False, True])
async def test_tcp_ends_dead_connections_by_the_setting(scene: Scene, pgbouncer: bool) -> None:
    database = scene.open(tcp_timeout_seconds=12.0, pgbouncer=pgbouncer)
    async with database.connection() as connection:
        raw = (await Driver.from_connection(connection)).raw
        used = raw._transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = {name: used.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in tcp_options(12.0)}
        assert found == {"TCP_KEEPIDLE": 6, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 12_000}
        if not pgbouncer:
            names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
            shown = [await connection.scalar(text(f"SELECT current_setting('{name}')")) for name in names]
            assert shown == ["6", "2", "3", "12000"]
    await database.close()


async def test_tcp_keeps_its_own_settings_for_zero(scene: Scene) -> None:
    database = scene.open(tcp_timeout_seconds=0.0)
    async with database.connection() as connection:
        raw = (await Driver.from_connection(connection)).raw
        used = raw._transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    await database.close()
