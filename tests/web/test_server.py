"""`worker web` as a process: how it ends."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.waiting import until
from worker import Settings
from worker.db.engine import Database

_SERVED_AT = re.compile(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")


@asynccontextmanager
async def served(settings: Settings, log: Path) -> AsyncIterator[tuple[ForkedProcess, int]]:
    """Run `worker web`. Yield its process and its port."""
    environment = {"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url, "PATH": ""}
    environment["LONGHAUL_WORKER__PACKAGES"] = '["tests.web.jobs"]'
    with log.open("w") as file:
        process = ForkServer.get().spawn(
            "worker", "web", "--port", "0", env=environment, stdout=file.fileno(), stderr=file.fileno()
        )

    async def find_port() -> str:
        assert process.poll() is None, log.read_text()
        found = _SERVED_AT.search(log.read_text())
        return "" if found is None else found[1]

    try:
        yield process, int(await until(find_port))
    finally:
        process.kill()


async def ask(port: int, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, or a part of one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    return reader, writer


async def is_closed(port: int) -> bool:
    """Return whether the server accepts no connection any more."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_streams_and_the_process_with_0(
    settings: Settings, database: Database, tmp_path: Path, signum: int
) -> None:
    log = tmp_path / "web.log"
    async with served(settings, log) as (process, port):
        reader, writer = await ask(port, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        process.send_signal(signum)
        assert await asyncio.to_thread(process.wait, 60) == 0, log.read_text()
        assert "Cancel" not in log.read_text()  # nothing was cut off
        writer.close()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_second_signal_forces_the_end_and_the_status_names_it(
    settings: Settings, database: Database, tmp_path: Path, signum: int, status: int
) -> None:
    log = tmp_path / "web.log"
    async with served(settings, log) as (process, port):
        head = b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        reader, writer = await ask(port, head + b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")  # it waits for the body, which does not come
        process.send_signal(signal.SIGTERM)
        await until(lambda: is_closed(port))
        process.send_signal(signum)
        assert await asyncio.to_thread(process.wait, 60) == status, log.read_text()
        writer.close()
