"""Connections to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from worker import Settings
from worker.queue.connection import one_connection


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_cancellation_at_any_moment_of_sending_is_not_lost(
    settings: Settings, make: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def cancel_after(turns: int) -> tuple[bool, bool]:
        connection: Any = one_connection(settings)
        await connection.connect()
        sending = asyncio.create_task(connection.send_packed_command(connection.pack_command("PING")))
        for _ in range(turns):
            await asyncio.sleep(0)
        accepted = sending.cancel()
        await asyncio.wait([sending])
        await connection.disconnect(nowait=True)
        return accepted, sending.cancelled()

    with asyncio.Runner(loop_factory=make) as runner:
        for turns in range(10):
            accepted, was_cancelled = runner.run(cancel_after(turns))
            assert accepted == was_cancelled, f"after {turns} turns of the event loop"


async def test_a_connection_that_ends_while_it_sends_raises_an_error_of_redis(settings: Settings) -> None:
    connection: Any = one_connection(settings)
    await connection.connect()
    connection._writer.transport.abort()
    with pytest.raises(RedisConnectionError):
        for _ in range(10):  # the first ones may be taken before the event loop has noticed
            await connection.send_packed_command(connection.pack_command("PING"))
            await asyncio.sleep(0)
    assert not connection.is_connected


async def test_a_server_that_takes_no_bytes_is_given_up(settings: Settings) -> None:
    writers: list[asyncio.StreamWriter] = []  # one without a reference is closed on Python 3.13

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    server = await asyncio.start_server(ignore, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    limits = {"url": f"redis://127.0.0.1:{port}/0", "command_timeout_seconds": 0.2}
    connection: Any = one_connection(settings.model_copy(update={"redis": settings.redis.model_copy(update=limits)}))
    with pytest.raises(RedisError, match=r"[Tt]imeout"):
        await connection.send_packed_command(connection.pack_command("SET", "key", b"x" * 50_000_000))
    assert not connection.is_connected
    for writer in writers:
        writer.close()
    server.close()
