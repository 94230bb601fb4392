"""The API in a real server, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.waiting import until_true
from worker.settings import Settings
from worker.web import WebApp
from worker.web.server import Server


@asynccontextmanager
async def serving(settings: Settings, app: WebApp) -> AsyncIterator[str]:
    """Serve an application on a free port. Yield its URL."""
    server = Server(settings, app)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    try:
        await until_true(lambda: server.started or task.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.handle_exit(15, None)
        await task
