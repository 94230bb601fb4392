"""A proxy before PostgreSQL that counts the client's messages, and does harm at a chosen one."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Harm = Literal["lose", "lose_answer", "cancel", "swallow", "swallow_answer"]
#: Longest wait for an answer that is to be lost.
_LAST_ANSWER_SECONDS = 0.2
_SSL_REQUEST, _CANCEL_REQUEST = 80877103, 80877102


class PostgresProxy:
    """Passes messages on, and harms one of them, once.

    Harms:
        lose: the connection ends in place of the message.
        lose_answer: the server gets the message, and its answer is lost with the connection.
        cancel: the server gets the message, and then a request to cancel it.
        swallow: the message and all that follows vanish, also the end of the connection: to both sides it looks alive.
        swallow_answer: the server gets the message; its answer and all that follows vanish.

    Attributes:
        port: where it listens.
        count: messages since `arm`.
        is_armed: whether it counts.
        has_harmed: whether the harm is done.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._at: int | None = None
        self._harm: Harm = "lose"
        self.port = self.count = 0
        self.is_armed = self.has_harmed = False
        self.is_closed = asyncio.Event()

    def arm(self, at: int | None, harm: Harm) -> None:
        """Count from now on, and harm the message of this number; None for none."""
        self._at, self._harm, self.count = at, harm, 0
        self.is_armed = True

    def disarm(self) -> None:
        """Stop counting."""
        self.is_armed = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        connection = _Connection(self, reader, writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await connection.run(self._target)
        writer.close()

    def harm_next(self) -> Harm | None:
        """Count a message. Return the fault to apply to it."""
        if not self.is_armed:
            return None
        self.count += 1
        if self.count != self._at or self.has_harmed:
            return None
        self.has_harmed = True
        return self._harm


class _Connection:
    def __init__(self, proxy: PostgresProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._backend = b""
        self._is_losing_answers = self._is_black_hole = False

    async def run(self, target: int) -> None:
        server_reader, self._server = await asyncio.open_connection("127.0.0.1", target)
        answers: asyncio.Task[None] | None = None
        try:
            while True:
                startup = await self._read_startup()
                self._server.write(startup)
                if struct.unpack("!i", startup[4:8])[0] != _SSL_REQUEST:
                    break
                self._writer.write(await server_reader.readexactly(1))
            answers = asyncio.create_task(self._pass_answers(server_reader))
            try:
                await self._pass_messages(target)
            finally:
                if self._is_black_hole:
                    await self._proxy.is_closed.wait()
        finally:
            self._server.close()
            if answers is not None:
                answers.cancel()
                await asyncio.wait({answers})

    async def _read_startup(self) -> bytes:
        length = await self._reader.readexactly(4)
        return length + await self._reader.readexactly(struct.unpack("!i", length)[0] - 4)

    async def _pass_messages(self, target: int) -> None:
        while True:
            head = await self._reader.readexactly(5)
            message = head + await self._reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            harm = self._proxy.harm_next()
            if harm == "lose":
                return
            if harm == "swallow" or self._is_black_hole:
                self._is_black_hole = True
                continue
            self._is_losing_answers = self._is_losing_answers or harm == "lose_answer"
            self._is_black_hole = harm == "swallow_answer"
            self._server.write(message)
            await self._server.drain()
            if harm == "lose_answer":
                self._ending = asyncio.create_task(self._lose())
            if harm == "cancel":
                await self._cancel(target)

    async def _cancel(self, target: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target)
        writer.write(struct.pack("!ii", 8 + len(self._backend), _CANCEL_REQUEST) + self._backend)
        await writer.drain()
        await reader.read()
        writer.close()

    async def _pass_answers(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] == b"K":
                    self._backend = body
                if self._is_black_hole:
                    continue
                if not self._is_losing_answers:
                    self._writer.write(head + body)
                    await self._writer.drain()
                elif head[:1] == b"Z":  # ready for the next query: the message has taken effect
                    break
        self._writer.close()

    async def _lose(self) -> None:
        """End a connection whose answers are lost. A message without Sync has no answer of its own."""
        await asyncio.sleep(_LAST_ANSWER_SECONDS)
        self._writer.close()


@asynccontextmanager
async def postgres_proxy(target: int) -> AsyncIterator[PostgresProxy]:
    """Listen on a free port before a server."""
    proxy = PostgresProxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.is_closed.set()
        server.close()
