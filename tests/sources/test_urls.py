"""Files at a URL, through fsspec: HTTP with and without ranges, and secrets in a URL."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.sources.test_files import begin, read
from tests.support.contexts import MakeContext
from worker.errors import CursorMismatch, SourceUnavailable, UsageError
from worker.sources import CsvFile, TextLines
from worker.sources.location import Location, load_extra

LINES = [f"{number:06}" + "x" * 100 for number in range(30_000)]


class FileServer:
    """An HTTP server with one file.

    Attributes:
        content: The file.
        has_ranges: Whether it answers requests for a part of the file.
        sent: The bytes of the file that it has sent.
    """

    def __init__(self, content: bytes, *, has_ranges: bool) -> None:
        self.content = content
        self.has_ranges = has_ranges
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body, status, fields = self.content, "200 OK", "Accept-Ranges: none"
        if "/none" in head.split("\r\n")[0]:
            body, status = b"", "404 Not Found"
        elif self.has_ranges:
            fields = "Accept-Ranges: bytes"
            if wanted := re.search(r"range: bytes=(\d+)-(\d*)", head, re.IGNORECASE):
                first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
                last = min(last, len(body) - 1)
                fields += f"\r\nContent-Range: bytes {first}-{last}/{len(body)}"
                body, status = body[first : last + 1], "206 Partial Content"
        writer.write(
            f"HTTP/1.1 {status}\r\n{fields}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        )
        if not head.startswith("HEAD"):
            self.sent += len(body)
            writer.write(body)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(server: FileServer) -> AsyncIterator[str]:
    """Serve, and return the URL."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        host, port = listening.sockets[0].getsockname()
        yield f"http://{host}:{port}/lines.txt?signature=secret"


@pytest.mark.parametrize("has_ranges", [True, False])
async def test_a_file_at_a_url_is_continued_after_a_restart(context: MakeContext, has_ranges: bool) -> None:
    server = FileServer("\n".join(LINES).encode(), has_ranges=has_ranges)
    async with serving(server) as url:
        await begin(context, lambda: TextLines(url), size=25_000)
        assert await read(context("run"), TextLines(url), size=25_000) == LINES[25_000:]
        await begin(lambda run=None: context("other"), lambda: TextLines(url), size=25_000)
        server.content = b"#" + server.content[1:]
        with pytest.raises(CursorMismatch, match="which are done, have changed"):
            await read(context("other"), TextLines(url))


async def test_secrets_of_a_url_are_not_shown(context: MakeContext) -> None:
    server = FileServer(b"id\n1\n", has_ranges=True)
    async with serving(server) as url:
        missing = url.replace("lines.txt", "none").replace("http://", "http://user:password@")
        source = CsvFile(missing)
        with pytest.raises(SourceUnavailable, match="/none cannot be read") as found:
            await read(context(), source)
        for shown in (str(found.value), source.fingerprint):
            assert "secret" not in shown
            assert "password" not in shown


async def test_a_server_that_is_away_is_named(context: MakeContext) -> None:
    with pytest.raises(SourceUnavailable, match=r"http://127\.0\.0\.1:1/x cannot be read"):
        await read(context(), TextLines("http://127.0.0.1:1/x"))


async def test_a_url_keeps_its_fingerprint_with_another_signature() -> None:
    first, second = (TextLines(f"https://host/file?signature={number}") for number in (1, 2))
    assert first.fingerprint == second.fingerprint == "https://host/file"


def test_an_extra_that_is_not_installed_is_named() -> None:
    with pytest.raises(UsageError, match=r'install "longhaul-worker\[nonsense\]"'):
        load_extra("no_such_module_at_all", "nonsense", "s3://bucket/key")
    assert Location("s3://key:secret@bucket/a").name == "s3://bucket/a"
