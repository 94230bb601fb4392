"""The API in the test's own event loop, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.workers import with_web
from tests.web.jobs import JOBS
from worker.db.engine import Database
from worker.queue.client import Client
from worker.settings import Settings
from worker.web import WebApp, web_app


@pytest.fixture
async def api(settings: Settings, database: Database, client: Client) -> AsyncIterator[WebApp]:
    """The application without tokens, which answers this machine, with the jobs of `tests.web.jobs`."""
    app = web_app(with_web(settings, refresh_seconds=0.001), jobs=JOBS)
    yield app
    await app.close()


@pytest.fixture
async def http(api: WebApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    async with connect(api) as opened:
        yield opened


def connect(app: WebApp, *, token: str | None = None, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """Return a client of an application.

    Args:
        app: the application.
        token: the token that it sends.
        address: the address that its requests come from.
    """
    transport = httpx.ASGITransport(app, client=(address, 4321))
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)
