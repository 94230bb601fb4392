"""Connections to Redis: of one kind for worker, client and watch."""

from __future__ import annotations

from functools import cache
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from worker.settings import Settings


def connection_pool(settings: Settings) -> ConnectionPool:
    """Return a pool of connections; nothing is sent yet."""
    pool: ConnectionPool = ConnectionPool.from_url(
        settings.redis.url,
        socket_connect_timeout=settings.redis.connect_timeout_seconds,
        socket_timeout=settings.redis.command_timeout_seconds,
    )
    kind: Any = pool.connection_class
    pool.connection_class = _packing(kind)
    return pool


def one_connection(settings: Settings) -> Any:
    """Return a connection that no pool hands to others; it is to be opened, and closed, by the caller."""
    return connection_pool(settings).make_connection()  # type: ignore[no-untyped-call]


@cache
def _packing(plain: Any) -> Any:
    """Return a class of connections that makes commands in C, as they are read; redis-py's asyncio side does not."""

    class Packing(plain):  # type: ignore[misc]
        def pack_command(self, *args: Any) -> list[bytes]:
            if type(args[0]) is str and " " in args[0]:
                args = (*args[0].split(), *args[1:])  # SCRIPT LOAD and the like are two words
            try:
                return [hiredis.pack_command(args)]
            except TypeError:  # a type of which redis-py knows how to write it, or why not
                packed: list[bytes] = super().pack_command(*args)
                return packed

        def pack_commands(self, commands: Any) -> list[bytes]:
            return [b"".join(part for command in commands for part in self.pack_command(*command))]

    return Packing


class Lane:
    """One connection for one caller, who sends a command at a time: without the pool's and the client's ceremony.

    Args:
        settings: for Redis.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Any = None

    async def send(self, *command: Any) -> Any:
        """Send a command, and return its answer.

        Raises:
            RedisError: it failed, or the connection did: the next command opens another one.
        """
        if self._connection is None:
            connection = one_connection(self._settings)
            await connection.connect()
            self._connection = connection
        connection = self._connection
        try:
            await connection.send_packed_command(connection.pack_command(*command), check_health=False)
            return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            self._connection = None
            await connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
