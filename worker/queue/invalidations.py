"""A watch over the queues and the orders: Redis tells when they have changed, nobody asks again and again.

Redis remembers which keys a connection has read, and says once when one of them is written, by whomever: a client of
ours, one of stock arq, `redis-cli`. So an idle worker sends nothing, and knows of a new job as soon as it is there.
https://redis.io/docs/latest/develop/reference/client-side-caching/ (in RESP2: reads on one connection, word of changes
on another one).

Where the server has no CLIENT TRACKING, or this user may not use it, the watch says so once, and the worker polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from worker.queue.connection import one_connection
from worker.queue.outage_log import OutageLog

if TYPE_CHECKING:
    from worker.settings import Settings

logger = logging.getLogger("longhaul.watch")

_CHANNEL = "__redis__:invalidate"
_PING_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_HEARING = "changes are not heard of"


class InvalidationListener:
    """Two connections: one that reads, and one that hears of changes to what was read.

    Args:
        settings: for Redis.
        outage: says that Redis is away.
    """

    def __init__(self, settings: Settings, outage: OutageLog | None = None) -> None:
        self._settings = settings
        self._on_change: Callable[[frozenset[str] | None], None] = lambda written: None
        self._outage = outage or OutageLog()
        self._reopening = False
        self._reader: Any = None
        self._hearer: Any = None
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        #: Whether changes are heard of; where not, one has to ask.
        self.active = False

    async def start(self, on_change: Callable[[frozenset[str] | None], None]) -> None:
        """Open both connections; returns when changes are heard of, or cannot be.

        Args:
            on_change: called with the names of keys that were written; with None for any of them.
        """
        self._on_change = on_change
        self._task = asyncio.create_task(self._run())
        await self._ready.wait()

    async def stop(self) -> None:
        """Close them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def reopen(self) -> None:
        """Begin again: behind the name of the server there may be another one by now."""
        if self.active:
            self._reopening, self.active = True, False
            hearer = self._hearer
            self._reader = None
            await hearer.disconnect(nowait=True)

    async def read(self, *commands: Sequence[Any]) -> list[Any]:
        """Read keys, and hear of their next change.

        Args:
            commands: each a name and its arguments.

        Raises:
            RedisError: the watch is not active, or has just lost its connection.
        """
        async with self._reading:
            reader = self._reader
            if reader is None:
                raise RedisError("the watch is closed")
            try:
                await reader.send_packed_command(reader.pack_commands([tuple(command) for command in commands]))
                return [await reader.read_response() for _ in commands]
            except BaseException:
                self._reader, self.active = None, False
                for connection in (reader, self._hearer):  # what hears ends, too, and both begin again
                    await connection.disconnect(nowait=True)
                raise

    async def _run(self) -> None:
        while True:
            try:
                await self._hear()
            except ResponseError as error:
                logger.warning(
                    "Redis does not tell of changes (CLIENT TRACKING: %s): asking every %g s instead",
                    error,
                    self._settings.worker.poll_interval_seconds,
                )
                return
            except (RedisError, OSError) as error:
                if not self._reopening:
                    self._outage.failed(_HEARING, error)
            finally:
                self.active = False
                self._ready.set()
            if self._reopening:
                self._reopening = False
                continue
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _hear(self) -> None:
        hearer, reader = one_connection(self._settings), one_connection(self._settings)
        try:
            await hearer.connect()
            await reader.connect()
            await hearer.send_command("CLIENT", "ID")
            number = await hearer.read_response()
            await hearer.send_command("SUBSCRIBE", _CHANNEL)
            await hearer.read_response()
            await reader.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", number)
            await reader.read_response()
            self._reader, self._hearer, self.active = reader, hearer, True
            self._outage.answered(_HEARING)
            self._on_change(None)
            self._ready.set()
            asked = False
            while True:
                told = await hearer.read_response(timeout=_PING_SECONDS, disconnect_on_error=False)
                if told is None:
                    if asked:
                        raise RedisError(f"no answer for {_PING_SECONDS:g} s")
                    await hearer.send_command("PING")
                    asked = True
                    continue
                asked = False
                if told[0] == b"message":
                    written = told[2]
                    names = None if written is None else frozenset(name.decode(errors="replace") for name in written)
                    self._on_change(names)
        finally:
            self._reader, self.active = None, False
            for connection in (hearer, reader):
                await connection.disconnect(nowait=True)
            self._on_change(None)
