"""Connections to Redis: of one kind for worker, client and watch, and a plain one for the thread of the leases.

Where Sentinels know the primary, each new connection asks them first. A connection whose server says that it takes no
writes (READONLY) is not used again: the name of the primary, or a proxy, may lead to another server by now.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import hiredis
import redis as blocking
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from worker.queue.outage_log import kind_of
from worker.queue.sentinel import asked_of, of_sentinels
from worker.settings import parse_redis_url

if TYPE_CHECKING:
    from worker.settings import Settings


def connection_pool(settings: Settings) -> ConnectionPool:
    """Return a pool of connections; nothing is sent yet."""
    place = parse_redis_url(settings.redis.url)
    pool: ConnectionPool = ConnectionPool.from_url(
        place.url,
        socket_connect_timeout=settings.redis.connect_timeout_seconds,
        socket_timeout=settings.redis.command_timeout_seconds,
    )
    pool.connection_class = _packing(cast(Hashable, pool.connection_class))
    if place.sentinels is not None:
        pool.connection_class = of_sentinels(cast(Hashable, pool.connection_class))
        pool.connection_kwargs["asked"] = asked_of(place.sentinels, settings.redis.connect_timeout_seconds)
    return pool


def one_connection(settings: Settings) -> Any:
    """Return a connection that no pool hands to others; it is to be opened, and closed, by the caller."""
    return connection_pool(settings).make_connection()  # type: ignore[no-untyped-call]


def blocking_client(settings: Settings, *, command_timeout: float) -> blocking.Redis:
    """Return a client for a thread; where Sentinels know the primary, they are asked now.

    Args:
        settings: for Redis.
        command_timeout: seconds for an answer, at most.

    Raises:
        RedisError: no Sentinel knows the primary.
    """
    place = parse_redis_url(settings.redis.url)
    limits: dict[str, Any] = {
        "socket_connect_timeout": settings.redis.connect_timeout_seconds,
        "socket_timeout": command_timeout,
    }
    if place.sentinels is None:
        return blocking.Redis.from_url(place.url, **limits)
    host, port = asked_of(place.sentinels, settings.redis.connect_timeout_seconds).primary_blocking()
    return blocking.Redis.from_url(place.at(host, port), **limits)


@cache
def _packing(plain: Any) -> Any:
    """Return a class of connections that makes commands in C, as they are read; redis-py's asyncio side does not.

    One of a server that takes no writes is opened anew.
    """

    class Packing(plain):  # type: ignore[misc]
        refused = False

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            if self.refused:
                await self.disconnect(nowait=True)
            await super().send_packed_command(command, check_health)

        async def on_connect(self) -> None:
            self.refused = False
            await super().on_connect()

        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return await super().read_response(*args, **options)
            except ResponseError as error:
                if kind_of(error) == "READONLY":
                    self.refused = True
                raise

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


class DedicatedConnection:
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
