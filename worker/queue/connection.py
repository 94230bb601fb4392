"""Connections to Redis: one kind for worker, client and listener, and a synchronous one for the thread of the leases.

If Sentinels or a cluster are configured, each new connection first asks them for the primary. A connection whose server
rejects writes (READONLY) is not used again: after a failover, the same name or proxy may lead to another server.

This is the lowest layer. It translates the errors of an ended connection: each connection error that leaves this module
is a `RedisError`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis
from redis.asyncio import ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.queue.cluster import make_cluster_connection_class, slot_owner
from worker.queue.errors import ConnectionLost
from worker.queue.home_loop import HomeLoop
from worker.queue.namespace import make_namespaced_class
from worker.queue.outage_log import kind_of
from worker.queue.sentinel import make_sentinel_connection_class, sentinel_group
from worker.settings import parse_redis_url

if TYPE_CHECKING:
    from worker.settings import Settings


#: A connection whose peer has vanished silently, e.g. behind a firewall that dropped its state, ends after this time.
_IDLE_SECONDS = 15
_PROBE_SECONDS = 5
_PROBES = 3
_UNACKNOWLEDGED_SECONDS = 20


def connection_pool(settings: Settings) -> ConnectionPool:
    """Return a pool of connections. Send nothing."""
    pool: ConnectionPool = make_pool(
        settings,
        _LoopPool,
        unix_class=UnixDomainSocketConnection,
        kinds=ConnectionKinds(
            _make_connection_class,
            make_sentinel_connection_class,
            make_cluster_connection_class,
            make_namespaced_class,
        ),
    )
    return pool


class _LoopPool(ConnectionPool):
    """A pool that forgets its connections when their event loop has ended, or their process has forked this one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._home = HomeLoop()

    def _enter(self) -> None:
        if self._home.is_current:
            return  # for each command: without a look at the connections
        if self._home.moves(*self._available_connections, *self._in_use_connections):
            self.reset()  # type: ignore[no-untyped-call]
            self._lock = asyncio.Lock()

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        self._enter()
        return await super().get_connection(*args, **options)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        self._enter()
        await super().disconnect(inuse_connections)


class ConnectionKinds(NamedTuple):
    """Make classes of connections from those of redis-py, asynchronous or synchronous.

    Attributes:
        plain: makes Longhaul's class from that of redis-py.
        sentinel: makes from it the class of connections to the primary that Sentinels name.
        cluster: makes from it the class of connections to the primary of a hash slot.
        namespaced: makes from any of them a class that adds the prefix to keys.
    """

    plain: Callable[[Any], Any]
    sentinel: Callable[[Any], Any]
    cluster: Callable[[Any], Any]
    namespaced: Callable[[Any, str], Any]


def make_pool(
    settings: Settings,
    pool_class: Any,
    *,
    unix_class: type,
    kinds: ConnectionKinds,
    command_timeout: float | None = None,
) -> Any:
    """Return a pool of connections, asynchronous or synchronous. Send nothing.

    Args:
        settings: its URL and timeouts.
        pool_class: the pool of redis-py.
        unix_class: the connection of redis-py to a Unix socket, which has no TCP keepalive.
        kinds: make the classes of its connections.
        command_timeout: longest wait for an answer, in seconds; `redis.command_timeout_seconds` by default.
    """
    place, prefix = parse_redis_url(settings.redis.url), settings.redis.prefix
    connect_timeout = settings.redis.connect_timeout_seconds
    pool = pool_class.from_url(
        place.url,
        socket_connect_timeout=connect_timeout,
        socket_timeout=command_timeout or settings.redis.command_timeout_seconds,
    )
    if not issubclass(pool.connection_class, unix_class):
        pool.connection_kwargs |= keepalive_options()
    pool.connection_class = kinds.plain(pool.connection_class)
    if place.sentinels is not None:
        pool.connection_class = kinds.sentinel(pool.connection_class)
        pool.connection_kwargs["sentinels"] = sentinel_group(place.sentinels, connect_timeout)
    elif place.cluster:
        pool.connection_class = kinds.cluster(pool.connection_class)
        pool.connection_kwargs["owner"] = slot_owner(place.cluster, prefix, connect_timeout)
    if prefix:
        pool.connection_class = kinds.namespaced(pool.connection_class, prefix)
    return pool


def one_connection(settings: Settings) -> Any:
    """Return a connection outside of any pool. The caller opens and closes it."""
    return connection_pool(settings).make_connection()  # type: ignore[no-untyped-call]


def keepalive_options() -> dict[str, Any]:
    """Return the TCP options that detect a peer that has vanished silently."""
    options = {
        "TCP_KEEPIDLE": _IDLE_SECONDS,
        "TCP_KEEPINTVL": _PROBE_SECONDS,
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": 1000 * _UNACKNOWLEDGED_SECONDS,
    }
    known = {getattr(socket, name): value for name, value in options.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": known}


#: Errors of uvloop ("the handler is closed") and of asyncio (the writer is None by then) if a connection closes under a
#: send, or while another task reads from it; redis-py passes them on.
_ENDED = (RuntimeError, AttributeError)


@cache
def _make_connection_class(plain: Any) -> Any:
    """Return a class of connections for asyncio, over one of redis-py.

    It packs commands in C, translates the errors of an ended connection, and reconnects if the server rejects writes.
    """

    class LonghaulConnection(plain):  # type: ignore[misc]
        refused = False

        async def _lost(self, error: Exception) -> ConnectionLost:
            await self.disconnect(nowait=True)
            return ConnectionLost(f"the connection to Redis has ended: {error}")

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            if self.refused:
                await self.disconnect(nowait=True)
            try:
                await _send(self, command, check_health)
            except _ENDED as error:
                raise await self._lost(error) from error

        async def on_connect(self) -> None:
            self.refused = False
            await super().on_connect()

        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return await super().read_response(*args, **options)
            except _ENDED as error:
                raise await self._lost(error) from error
            except ResponseError as error:
                if kind_of(error) == "READONLY":
                    self.refused = True
                raise

        async def can_read_destructive(self) -> bool:
            try:
                return bool(await super().can_read_destructive())
            except _ENDED as error:
                raise await self._lost(error) from error

        async def disconnect(self, nowait: bool = False) -> None:
            try:
                await super().disconnect(nowait)
            except _ENDED:
                self._reader = self._writer = None  # another task has closed it

        def pack_command(self, *args: Any) -> list[bytes]:
            if type(args[0]) is str and " " in args[0]:
                args = (*args[0].split(), *args[1:])  # SCRIPT LOAD and the like are two words
            try:
                return [hiredis.pack_command(args)]
            except TypeError:  # redis-py converts other types, or rejects them
                packed: list[bytes] = super().pack_command(*args)
                return packed

        def pack_commands(self, commands: Any) -> list[bytes]:
            return [b"".join(part for command in commands for part in self.pack_command(*command))]

    return LonghaulConnection


async def _send(connection: Any, command: Any, check_health: bool) -> None:
    """Send the bytes of a command, within `socket_timeout`. Connect first if that is needed.

    redis-py's own uses `asyncio.wait_for`, which loses a cancellation that arrives together with the result (CPython
    3.11): a caller that waits within a timeout would wait for ever.
    """
    if not connection.is_connected:
        await connection.connect()
    elif check_health:
        await connection.check_health()
    try:
        async with asyncio.timeout(connection.socket_timeout):
            await connection._send_packed_command([command] if isinstance(command, bytes) else command)
    except BaseException as error:
        await connection.disconnect(nowait=True)
        if isinstance(error, TimeoutError):
            raise RedisTimeoutError("Timeout writing to socket") from None
        if isinstance(error, OSError):
            raise ConnectionLost(f"the connection to Redis has ended: {error}") from error
        raise


class DedicatedConnection:
    """One connection for a caller that sends one command at a time, without the overhead of a pool and a client.

    Args:
        settings: the settings of Redis.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Any = None

    async def send(self, *command: Any) -> Any:
        """Send a command and return its answer.

        Raises:
            RedisError: the command or the connection failed. The next command opens another connection.
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
