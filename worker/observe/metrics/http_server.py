"""A small HTTP/1.1 server in the event loop of a worker, for three fixed paths.

It reads one request of a few kilobytes, within a few seconds, over a limited number of connections, answers it and
closes the connection. There is no body, no keep-alive and no routing by patterns: a request is a method and a path.

If it listens on this machine alone, the header `Host` has to name this machine. Otherwise a page in a browser that runs
here could read the answers, under a name of its own that resolves to 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from worker.cancellation import cancel_and_wait
from worker.errors import SettingsError
from worker.observe.loopback import is_loopback, names_loopback

logger = logging.getLogger("longhaul.metrics")

_MOST_HEADER_BYTES = 8192
_MOST_CONNECTIONS = 64
#: Longest time, in seconds, for a request to arrive, to be answered, and for the answer to leave.
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_SEND_SECONDS = 10.0
_METHODS = ("GET", "HEAD")


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        status: its status code.
        body: its body.
        content_type: the type of the body.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def as_json(status: int, values: Mapping[str, Any]) -> Answer:
    """Return an answer with a JSON object."""
    return Answer(status, json.dumps(values).encode() + b"\n", "application/json")


Handler = Callable[[], Awaitable[Answer]]


class HttpServer:
    """Serves fixed paths.

    Args:
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        handlers: the handler of each path.

    Attributes:
        port: the port on which it listens, once it has started.
    """

    def __init__(self, host: str, port: int, handlers: Mapping[str, Handler]) -> None:
        self.port = port
        self._host = host
        self._is_local = is_loopback(host)
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            SettingsError: it cannot listen there.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self.port, limit=_MOST_HEADER_BYTES, backlog=_MOST_CONNECTIONS
            )
        except (OSError, OverflowError) as error:
            text = f"metrics.host = {self._host!r}, metrics.port = {self.port}: cannot listen there: {error}"
            raise SettingsError(text) from error
        self.port = self._server.sockets[0].getsockname()[1]
        logger.info("serving metrics host=%s port=%d paths=%s", self._host, self.port, ",".join(self._handlers))

    async def close(self) -> None:
        """Stop listening, and close the connections."""
        if self._server is None:
            return
        self._server.close()
        await cancel_and_wait(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._connections.add(task)
        try:
            if len(self._connections) <= _MOST_CONNECTIONS:
                await self._exchange(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client is gone, or too slow
        except asyncio.CancelledError:
            pass  # the server closes; no code awaits this task
        finally:
            self._connections.discard(task)
            _abort(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            method, answer = "GET", _problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            method, answer = await self._answer(head)
        writer.write(_encode(answer, with_body=method != "HEAD"))
        async with asyncio.timeout(_SEND_SECONDS):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[str, Answer]:
        """Return the method and the answer to a request."""
        parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return "GET", _problem(HTTPStatus.BAD_REQUEST)
        method, target, _ = parts
        if self._is_local and not _names_this_machine(head):
            return method, _problem(HTTPStatus.FORBIDDEN)
        handler = self._handlers.get(target.partition("?")[0])
        if handler is None:
            return method, _problem(HTTPStatus.NOT_FOUND)
        if method not in _METHODS:
            return method, _problem(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return method, await handler()
        except Exception as error:
            logger.error("request failed path=%s", target[:100], exc_info=error)
            return method, _problem(HTTPStatus.INTERNAL_SERVER_ERROR)


def _names_this_machine(head: bytes) -> bool:
    """Return whether each header `Host` of a request names this machine; HTTP/1.0 needs none."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    hosts = [
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip().lower() == "host"
    ]
    return all(names_loopback(f"//{host}") for host in hosts)


def _problem(status: HTTPStatus) -> Answer:
    return Answer(status.value, f"{status.value} {status.phrase}\n".encode())


def _encode(answer: Answer, *, with_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *(["Allow: GET, HEAD"] if answer.status == HTTPStatus.METHOD_NOT_ALLOWED else []),
        "\r\n",
    ]
    return "\r\n".join(lines).encode("latin-1") + (answer.body if with_body else b"")


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection without waiting for its other end."""
    if not writer.is_closing():
        writer.transport.abort()
