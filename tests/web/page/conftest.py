"""The page in a browser, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from demo.page_server import find_browser
from tests.web.page.scene import PageSite, page_site
from worker.embedded import Services


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(servers: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageSite]:
    """The page with a worker `north`, shared by the tests of a module: each uses ids of its own."""
    if find_browser() is None:
        pytest.skip("there is no Chromium: install Debian's package `chromium`, or put it on PATH")
    async with page_site(servers, tmp_path_factory.mktemp("page"), workers=["north"]) as opened:
        yield opened
