"""Connections of asyncpg that end: each command is timed for `worker.db.liveness`, and TCP ends dead connections.

TCP keepalives and TCP_USER_TIMEOUT end connections whose packets are not acknowledged, also while no command runs.
"""

from __future__ import annotations

import logging
import socket
import struct
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import asyncpg

from worker.db.liveness import LivenessChecker

logger = logging.getLogger("longhaul.db")

#: Position of `tcpi_bytes_acked` and `tcpi_bytes_received` in Linux's `struct tcp_info`.
_BYTES_AT, _BYTES = 120, struct.Struct("=2Q")
#: The methods of asyncpg's protocol that send a command and wait for its answer.
COMMANDS = (
    *("prepare", "bind_execute", "bind_execute_many", "bind", "execute", "close_portal", "query"),
    *("copy_in", "copy_out", "close_statement"),
)


def tcp_options(seconds: float) -> dict[str, int]:
    """Return the names and values of the options by which TCP ends a dead connection within some seconds."""
    if not seconds:
        return {}
    return {
        "TCP_KEEPIDLE": max(1, round(seconds / 2)),
        "TCP_KEEPINTVL": max(1, round(seconds / 6)),
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": round(seconds * 1000),
    }


def server_tcp_settings(seconds: float) -> dict[str, str]:
    """Return the server's parameters for the same options. A server without support, or a Unix socket, ignores them."""
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    return dict(zip(names, map(str, tcp_options(seconds).values()), strict=False))


class WatchedProtocol:
    """asyncpg's protocol, with the time at which the current command was sent.

    Attributes:
        pid: process id of the server's session.
        opened: when the connection was opened, by the loop's clock.
        number: number of commands so far.
        since: when the current command was sent, by the loop's clock; None if there is none.
        is_fed: whether code of the job produces or consumes the rows of the current command.
    """

    def __init__(self, protocol: Any, transport: Any, loop: Any, checker: LivenessChecker) -> None:
        self._protocol = protocol
        self._transport = transport
        self._loop = loop
        self._checker = checker
        self._connection: Callable[[], Any] = lambda: None
        self._depth = 0
        self._is_armed = False
        self._end_reason = ""
        self.pid: int = protocol.get_server_pid()
        self.opened: float = loop.time()
        self.number = 0
        self.since: float | None = None
        self.is_fed = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._protocol, name)
        if callable(found):
            setattr(self, name, found)
        return found

    def set_owner(self, connection: WatchedConnection) -> None:
        """Set the connection to terminate."""
        self._connection = weakref.ref(connection)

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes that the server has acknowledged, and those that it has sent; None if unknown."""
        used = self._transport.get_extra_info("socket")
        try:
            info = used.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_AT + _BYTES.size)
            acknowledged, received = _BYTES.unpack_from(info, _BYTES_AT)
        except (AttributeError, OSError, struct.error):
            return None
        return acknowledged, received

    def end(self, reason: str) -> None:
        """Terminate the connection. The current command fails with the reason."""
        connection = self._connection()
        if connection is None:
            return
        waited = self._loop.time() - (self.since or self._loop.time())
        self._end_reason = f"no answer for {waited:.0f} s: {reason}: the connection was terminated"
        logger.warning("connection terminated pid=%d seconds=%.1f reason=%s", self.pid, waited, reason)
        connection.terminate()

    def _arm(self, seconds: float) -> None:
        self._is_armed = True
        self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Hand the current command to the checker if it waits for too long. One timer serves many commands."""
        self._is_armed = False
        if self.since is None:
            return
        remaining = self.since + self._checker.after_seconds - self._loop.time()
        if remaining > 0:
            self._arm(remaining)
        else:
            self._checker.add(self)


def _is_fed(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether code of the job consumes or produces the rows of a COPY: `copy_in(_, reader, _, records, ...)`."""
    return name == "copy_out" or args[1] is not None or isinstance(args[3], AsyncIterable)


def _watched(name: str) -> Callable[..., Awaitable[Any]]:
    is_copy = name.startswith("copy_")

    async def command(self: WatchedProtocol, *args: Any, **options: Any) -> Any:
        self._depth += 1
        if self._depth == 1:  # else asyncpg refuses a second command beside the first
            self.number += 1
            self.since = self._loop.time()
            self.is_fed = is_copy and _is_fed(name, args)
            if not self._is_armed:
                self._arm(self._checker.after_seconds)
        try:
            return await getattr(self._protocol, name)(*args, **options)
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
            if self._end_reason:
                raise asyncpg.ConnectionDoesNotExistError(self._end_reason) from error
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                self.since = None

    return command


for _name in COMMANDS:
    setattr(WatchedProtocol, _name, _watched(_name))


class WatchedConnection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection whose commands and whose end take a limited time.

    Attributes:
        checker: checks commands without an answer.
    """

    checker: LivenessChecker

    def __init__(self, protocol: Any, transport: Any, loop: Any, *args: Any, **options: Any) -> None:
        watched = WatchedProtocol(protocol, transport, loop, self.checker)
        super().__init__(watched, transport, loop, *args, **options)
        watched.set_owner(self)
        set_tcp_options(transport, self.checker.tcp_seconds)

    async def close(self, *, timeout: float | None = None) -> None:
        """Close the connection. If the server does not close it within the timeout, terminate it."""
        limit = self.checker.close_seconds()
        try:
            await super().close(timeout=limit if timeout is None else min(timeout, limit))
        except TimeoutError:
            self.checker.close_timed_out()


def set_tcp_options(transport: Any, seconds: float) -> None:
    """Set the options by which TCP ends a dead connection. A Unix socket has none."""
    used, options = transport.get_extra_info("socket"), tcp_options(seconds)
    if used is None or used.family not in (socket.AF_INET, socket.AF_INET6) or not options:
        return
    used.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # not on every platform
            used.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
