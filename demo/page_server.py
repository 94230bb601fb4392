"""The server of the page in this process, and Chromium."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker import Settings
from worker.web import WebApp
from worker.web.server import Server

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Return the path of Chromium; None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@asynccontextmanager
async def serving(settings: Settings, app: WebApp) -> AsyncIterator[str]:
    """Serve an application at `web.port`; 0 is any free one. Yield its URL."""
    server = Server(settings, app)
    task = asyncio.create_task(server._serve())
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.handle_exit(15, None)
        await task
