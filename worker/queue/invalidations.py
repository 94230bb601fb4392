"""Server-assisted invalidation: Redis sends a message when a key that was read is written, so no polling is needed.

Redis records which keys a connection has read, and sends one message when any client writes one of them: a client of
Longhaul, a stock arq client, or `redis-cli`. An idle worker sends no commands and still sees a new job at once.
https://redis.io/docs/latest/develop/reference/client-side-caching/ (in RESP2: one connection reads,
another one receives the messages).

If the server has no CLIENT TRACKING, or the user has no permission for it, the worker logs that once and polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from worker.cancellation import cancel_and_wait
from worker.queue.connection import one_connection
from worker.queue.key_problems import printable
from worker.queue.outage_log import OutageLog

if TYPE_CHECKING:
    from worker.settings import Settings

logger = logging.getLogger("longhaul.watch")

_CHANNEL = "__redis__:invalidate"
_CHECK_SECONDS = 1.0
_PING_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_RECEIVING = "changes of keys cannot be received"


class InvalidationListener:
    """Reads keys on one connection, and receives a message on another one when one of them is written.

    Args:
        settings: the settings of Redis.
        outage: logs outages of Redis.
    """

    def __init__(self, settings: Settings, outage: OutageLog | None = None) -> None:
        self._settings = settings
        self._prefix_length = len(settings.redis.prefix)
        self._on_change: Callable[[frozenset[str] | None], None] = lambda written: None
        self._outage = outage or OutageLog()
        self._reopening = False
        self._reader: Any = None
        self._receiver: Any = None
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        #: Whether changes are received. If not, the caller must poll.
        self.active = False

    async def start(self, on_change: Callable[[frozenset[str] | None], None]) -> None:
        """Open both connections. Returns when changes are received, or cannot be.

        Args:
            on_change: called with the names of keys that were written; with None if any key may have been.
        """
        self._on_change = on_change
        self._task = asyncio.create_task(self._run())
        await self._ready.wait()

    async def stop(self) -> None:
        """Close the connections."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    async def reopen(self) -> None:
        """Reconnect: after a failover, the same name may lead to another server."""
        if self.active:
            self._reopening, self.active = True, False
            receiver = self._receiver
            self._reader = None
            await receiver.disconnect(nowait=True)

    async def read(self, *commands: Sequence[Any]) -> list[Any]:
        """Read keys and subscribe to their next change.

        Args:
            commands: each a command and its arguments.

        Returns:
            The answers. If Redis rejects a command, for example because its key has another type, its answer is the
            `ResponseError`.

        Raises:
            RedisError: the listener is not active, or has just lost its connection.
        """
        async with self._reading:
            reader = self._reader
            if reader is None:
                raise RedisError("the listener is closed")
            try:
                await reader.send_packed_command(reader.pack_commands([tuple(command) for command in commands]))
                return [await _read_answer(reader) for _ in commands]
            except BaseException:
                self._reader, self.active = None, False
                for connection in (reader, self._receiver):  # reset both connections
                    await connection.disconnect(nowait=True)
                raise

    async def _run(self) -> None:
        while True:
            try:
                await self._receive()
            except ResponseError as error:
                logger.warning(
                    "CLIENT TRACKING is not available error=%s: polling every %g s instead",
                    error,
                    self._settings.worker.poll_interval_seconds,
                )
                return
            except (RedisError, OSError) as error:
                if not self._reopening:
                    self._outage.failed(_RECEIVING, error)
            finally:
                self.active = False
                self._ready.set()
            if self._reopening:
                self._reopening = False
                continue
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _receive(self) -> None:
        receiver, reader = one_connection(self._settings), one_connection(self._settings)
        try:
            receiver.follows = reader.follows = False  # a reopened connection would no longer be tracked
            await receiver.connect()
            await reader.connect()
            if _server(receiver) != _server(reader):  # a failover took place meanwhile
                raise RedisConnectionError("two connections lead to different servers")
            await receiver.send_command("CLIENT", "ID")
            number = await receiver.read_response()
            await receiver.send_command("SUBSCRIBE", _CHANNEL)
            await receiver.read_response()
            await reader.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", number)
            await reader.read_response()
            self._reader, self._receiver, self.active = reader, receiver, True
            self._outage.answered(_RECEIVING)
            self._on_change(None)
            self._ready.set()
            silent_seconds = 0.0
            while True:
                message = await receiver.read_response(timeout=_CHECK_SECONDS, disconnect_on_error=False)
                if message is None:
                    silent_seconds += _CHECK_SECONDS
                    await self._check(reader, receiver, silent_seconds)
                    continue
                silent_seconds = 0.0
                if message[0] == b"message":
                    written = message[2]
                    self._on_change(None if written is None else frozenset(map(self._plain_name, written)))
        finally:
            self._reader, self.active = None, False
            for connection in (receiver, reader):
                await connection.disconnect(nowait=True)
            self._on_change(None)

    def _plain_name(self, key: bytes) -> str:
        return printable(key[self._prefix_length :])

    async def _check(self, reader: Any, receiver: Any, silent_seconds: float) -> None:
        """Check both connections while no message arrives.

        If only the reading connection ends, Redis forgets which keys it has read, and sends no message about that.

        Raises:
            RedisError: A connection has ended, or Redis does not answer.
        """
        async with self._reading:
            if not (reader.is_connected and receiver.is_connected) or await reader.can_read_destructive():
                raise RedisError("the connection that reads keys has ended")
        if silent_seconds >= 2 * _PING_SECONDS:
            raise RedisError(f"no answer for {_PING_SECONDS:g} s")
        if silent_seconds == _PING_SECONDS:
            await receiver.send_command("PING")
            await self.read(("PING",))


def _server(connection: Any) -> tuple[Any, Any]:
    return getattr(connection, "host", None), getattr(connection, "port", None)


async def _read_answer(reader: Any) -> Any:
    """Return the next answer of a connection; an error as a value, because the answers after it must be read, too."""
    try:
        return await reader.read_response()
    except ResponseError as error:
        return error
