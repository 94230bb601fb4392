"""`make screenshots`: each view of the page at three widths in both colours, over real workers, in build/screenshots/.

With DATABASE_URL and REDIS_URL of a scene that runs already (`python -m demo.page_scene`), it takes that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from demo.page_scene import scene, scene_environment
from demo.page_server import find_browser, serving
from demo.workers import Workers
from worker import Settings, load_settings
from worker.embedded import services
from worker.web import web_app

FOLDER = Path(__file__).parent.parent / "build" / "screenshots"
WIDTHS = {390: 844, 1280: 900, 2560: 1440}
COLOURS = ("light", "dark")
VIEWS = {
    "overview": "/",
    "runs": "/page/runs",
    "run": "/page/runs/search-2026-11-27",
    "run-hands": "/page/runs/villages",
    "run-quarantine": "/page/runs/time-zones-42",
    "run-dead": "/page/runs/prices-nordic",
    "jobs": "/page/jobs",
    "job": "/page/jobs/rebuild_search",
    "cron": "/page/cron",
    "dead-letters": "/page/dead-letters",
    "quarantine": "/page/quarantine",
    "limits": "/page/limits",
    "outbox": "/page/outbox",
    "events": "/page/events",
    "orders": "/page/audit",
    "problem": "/page/nothing",
}
_SETTLE_MS = 1_500
_HISTORY_SECONDS = 20


async def take(settings: Settings, names: list[str], widths: list[int]) -> None:
    """Write the pictures."""
    settings = settings.model_copy(update={"web": settings.web.model_copy(update={"port": 0})})
    browser_path = find_browser()
    if browser_path is None:
        raise SystemExit("there is no Chromium: install Debian's package `chromium`")
    FOLDER.mkdir(parents=True, exist_ok=True)
    app = web_app(settings)
    async with serving(settings, app) as url, async_playwright() as playwright:
        await asyncio.sleep(_HISTORY_SECONDS if "QUICK" not in os.environ else 1)
        browser = await playwright.chromium.launch(executable_path=browser_path)
        for name in names:
            for width in widths:
                for colour in COLOURS:
                    await _take_one(browser, url, name, width, colour)
        await browser.close()
    await app.close()


async def _take_one(browser: Browser, url: str, name: str, width: int, colour: str) -> None:
    context = await browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme="dark" if colour == "dark" else "light",
        device_scale_factor=2 if width < 1000 else 1,
    )
    page = await context.new_page()
    await page.goto(url + VIEWS[name])
    await page.wait_for_timeout(_SETTLE_MS)
    path = FOLDER / f"{name}-{width}-{colour}.png"
    await page.screenshot(path=path, full_page=True)
    await context.close()
    sys.stdout.write(f"{path.relative_to(FOLDER.parent.parent)}: {path.stat().st_size:,} bytes\n")


async def main(names: list[str], widths: list[int]) -> None:
    """Take the pictures of a scene that runs, or of one of its own."""
    if "DATABASE_URL" in os.environ and "REDIS_URL" in os.environ:
        await take(load_settings(), names, widths)
        return
    with services() as running, tempfile.TemporaryDirectory(prefix="longhaul-scene-") as folder:
        environment = scene_environment(running)
        os.environ.update(environment)
        settings, workers = load_settings(environment=environment), Workers(environment, Path(folder))
        with contextlib.ExitStack() as stack:
            stack.callback(workers.stop)
            async with scene(settings, workers):
                await take(settings, names, widths)


if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if name in VIEWS] or list(VIEWS)
    sizes = [int(text) for text in sys.argv[1:] if text.isdecimal()] or list(WIDTHS)
    asyncio.run(main(chosen, sizes))
