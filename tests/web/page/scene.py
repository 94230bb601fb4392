"""A worker process, the server of the page, and a browser."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright
from redis.asyncio import Redis
from sqlalchemy import insert

from demo.page_server import find_browser, serving
from tests.models import Author
from tests.support.clean_database import clean
from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.workers import with_web, with_worker
from tests.web.page.jobs import brittle, chosen_walk, nightly, picky_walk, slow_walk, strict_walk
from worker import Client
from worker.db.engine import Database
from worker.embedded import Services
from worker.settings import Settings, load_settings
from worker.web import web_app

JOBS = (brittle, chosen_walk, nightly, picky_walk, slow_walk, strict_walk)
ROWS = 400
PACKAGE = '["tests.web.page.jobs"]'
_WORKER = {
    "LONGHAUL_WORKER__PACKAGES": PACKAGE,
    "LONGHAUL_WORKER__LEASE_SECONDS": "2",
    "LONGHAUL_WORKER__POLL_INTERVAL_SECONDS": "0.05",
    "LONGHAUL_WORKER__RESCUE_INTERVAL_SECONDS": "1",
    "LONGHAUL_WORKER__BACKOFF_BASE_SECONDS": "0.2",
}
#: Messages of the browser that are no fault: a session that is refused, a file that is not there.
_EXPECTED = ("the server responded with a status of",)


class PageSite:
    """The page under test.

    Attributes:
        url: where it is served.
        browser: the browser.
        client: a client of the queue.
        redis: a connection to Redis.
        database: the database, in which `author` has 400 rows.
        settings: the settings of the server.
    """

    def __init__(self, services: Services, logs: Path, settings: Settings) -> None:
        self._services = services
        self._logs = logs
        self.settings = settings
        self.workers: dict[str, ForkedProcess] = {}
        self.url = ""
        self.browser: Browser
        self.client: Client
        self.redis: Redis
        self.database: Database
        self._faults: list[str] = []

    # --- pages

    @asynccontextmanager
    async def context(self, **options: Any) -> AsyncIterator[BrowserContext]:
        """Open a browser's context: cookies, size, colours."""
        context = await self.browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(60_000)
        try:
            yield context
        finally:
            await context.close()

    @asynccontextmanager
    async def open(self, path: str = "/", **options: Any) -> AsyncIterator[Page]:
        """Open a page in a context of its own. At the end, no script has failed, and no policy was violated."""
        async with self.context(**options) as context:
            page = await context.new_page()
            self.watch(page)
            await page.goto(self.url + path)
            yield page
        faults, self._faults = self._faults, []
        assert not faults, faults

    def watch(self, page: Page) -> None:
        """Note the errors of a page's scripts."""

        def note(message: ConsoleMessage) -> None:
            if message.type == "error" and not any(text in message.text for text in _EXPECTED):
                self._faults.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: self._faults.append(str(error)))
        page.on("dialog", lambda dialog: self._faults.append(f"a dialog was opened: {dialog.message}"))

    async def check(self, page: Page) -> None:
        """Fail if axe-core finds something on a page, once its animations have ended: they fade colours in."""
        await page.evaluate("Promise.allSettled(document.getAnimations().map((one) => one.finished))")
        found = (await Axe().run(page)).response["violations"]
        shown = [(one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:4]]) for one in found]
        assert not shown, shown

    # --- workers

    def start_worker(self, name: str, **environment: str) -> None:
        """Start a worker."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self.workers[name] = ForkServer.get().spawn(
                *("worker", "run", "--name", name),
                env=self._services.environment() | _WORKER | environment,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )

    def kill_worker(self, name: str) -> None:
        """Kill a worker by SIGKILL."""
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End all workers."""
        for name in list(self.workers):
            self.kill_worker(name)
        for path in self._logs.glob("*.log"):
            sys.stdout.write(path.read_text()[-5_000:])  # shown by pytest where a test failed


@asynccontextmanager
async def page_site(
    services: Services, folder: Path, *, workers: Sequence[str] = (), **web: Any
) -> AsyncIterator[PageSite]:
    """Serve the page on empty servers, with workers and a browser.

    Args:
        services: the servers.
        folder: takes the logs of the workers.
        workers: names of the workers to start.
        web: settings of the section `web`.
    """
    settings = load_settings(environment=services.environment(), overrides={"database": {"pgbouncer": False}})
    settings = with_web(with_worker(settings, lease_seconds=2.0), **({"refresh_seconds": 0.1, "port": 0} | web))
    site = PageSite(services, folder, settings)
    async with AsyncExitStack() as stack:
        site.database = Database(settings, "test")
        stack.push_async_callback(site.database.close)
        await asyncio.to_thread(clean, services)
        site.redis = Redis.from_url(settings.redis.url)
        stack.push_async_callback(site.redis.aclose)
        await site.redis.flushall()
        async with site.database.session() as session:
            rows = [{"name": f"author {n}", "region": n % 7, "code": str(n)} for n in range(1, ROWS + 1)]
            await session.execute(insert(Author), rows)
            await session.commit()
        site.client = await stack.enter_async_context(Client(settings))
        app = web_app(settings, jobs=JOBS)
        stack.push_async_callback(app.close)
        site.url = await stack.enter_async_context(serving(settings, app))
        playwright = await stack.enter_async_context(async_playwright())
        site.browser = await playwright.chromium.launch(executable_path=find_browser())
        stack.push_async_callback(site.browser.close)
        stack.callback(site.stop)
        for name in workers:
            site.start_worker(name)
        yield site
