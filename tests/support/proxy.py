"""A TCP proxy in front of a server: slow, cut, reset, half-open, moved to another server, or with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on.

    Attributes:
        target: port of the server behind it; connections that are open stay where they are.
        delay: seconds that each answer comes later.
        opened: number of connections that were asked for.
    """

    def __init__(self, target: int, *, delay: float = 0.0) -> None:
        self.target = target
        self.delay = delay
        self.opened = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._swallowed: set[asyncio.StreamWriter] = set()
        self._swallows_new = False

    def cut(self) -> None:
        """End every connection."""
        for writer in list(self._writers):
            writer.close()

    def reset(self) -> None:
        """End every connection with a reset (RST), also in the middle of an answer."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it has just been closed
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    def swallow(self, *, new: bool = False) -> None:
        """Stop forwarding on the open connections, and on new ones: to both sides they look alive."""
        self._swallowed |= self._writers
        self._swallows_new = new

    def restore(self) -> None:
        """Forward on new connections again."""
        self._swallows_new = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.opened += 1
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(inner_writer)
            if self._swallows_new:
                self._swallowed |= {writer, inner_writer}
            there = asyncio.create_task(self._pass_on(reader, inner_writer, 0.0))
            await self._pass_on(inner_reader, writer, self.delay)
            there.cancel()
            await asyncio.wait({there})
            inner_writer.close()
            self._writers.discard(inner_writer)
        writer.close()
        self._writers.discard(writer)
        self._swallowed.discard(writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if delay:
                    await asyncio.sleep(delay)
                if writer not in self._swallowed:
                    writer.write(data)
                    await writer.drain()
        if writer not in self._swallowed:  # otherwise the end of the connection is swallowed, too
            writer.close()


@asynccontextmanager
async def proxied(target: int, *, delay: float = 0.0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """Start a proxy in front of the server of a port."""
    proxy = Proxy(target, delay=delay)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
