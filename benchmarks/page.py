"""`python -m benchmarks.page` (`make bench-page`): the page with 10,000 runs and 10,000 dead letters, in Chromium.

Measured are the first paint of each list, the time that an update takes of the browser's main thread, and what 200 open
pages cost the server and Redis.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import psutil
from playwright.async_api import Browser, async_playwright
from redis.asyncio import Redis
from sqlalchemy import text

from benchmarks.report import Report, Row, at_most, quick, refuse_arguments
from demo.page_server import find_browser, serving
from worker import Settings, load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.queue import keys
from worker.types import Database
from worker.web import web_app

_RUNS = 1_000 if quick() else 10_000
_LETTERS = 1_000 if quick() else 10_000
_PAGES = 200
_OPENINGS = 3 if quick() else 9
_SECONDS = 5 if quick() else 15
_PAINT_MS = 300.0
_UPDATE_MS = 50.0
_COMMANDS = 50.0
_VIEWS = ("/", "/page/runs", "/page/dead-letters")

_FILL = text("""
INSERT INTO worker.run (id, job, queue, state, attempt, created_at, started_at, updated_at, finished_at, payload,
                        arguments, fence, batches_before)
SELECT 'run-' || n, 'job_' || n % 20, 'arq:queue', 'succeeded', 1, now() - n * interval '1 minute',
       now() - n * interval '1 minute', now(), now(), '{}', '{}', 1, 0
  FROM generate_series(1, :runs) n
""")


async def fill(settings: Settings, redis: Redis) -> None:
    """Write the runs and the dead letters."""
    database = Database(settings, "benchmark")
    await migrate(database)
    async with database.transaction() as session:
        await session.execute(_FILL, {"runs": _RUNS})
    await database.close()
    now = time.time()
    pipeline = redis.pipeline(transaction=False)
    trace = "Traceback (most recent call last):\n" + '  File "jobs/prices.py", line 12, in sync\n' * 40
    for number in range(_LETTERS):
        letter = {
            "job": f"job_{number % 20}",
            "queue": "arq:queue",
            "at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now - number)),
            "attempts": 3,
            "error": f"ValueError: row {number} has no price",
            "traceback": trace,
            "payload": json.dumps({"f": f"job_{number % 20}", "k": {"n": number}}),
        }
        pipeline.hset(keys.DEAD, f"dead-{number}", json.dumps(letter))
        pipeline.zadd(keys.DEAD_AT, {f"dead-{number}": (now - number) * 1000})
        pipeline.zadd("arq:queue", {f"wait-{number}": now * 1000 + number})
        if number % 500 == 499:
            await pipeline.execute()
    await pipeline.execute()


async def first_paint(browser: Browser, url: str) -> float:
    """Return the median of the first contentful paint in ms, each in a browser without a cache."""
    found = []
    for _ in range(_OPENINGS):
        context = await browser.new_context(viewport={"width": 1280, "height": 900})
        page = await context.new_page()
        await page.goto(url, wait_until="load")
        # Not wait_for_function: it needs eval(), which the policy of the page forbids.
        while not await page.evaluate("performance.getEntriesByName('first-contentful-paint').length"):
            await asyncio.sleep(0.01)
        found.append(await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        await context.close()
    return statistics.median(found)


async def longest_update(browser: Browser, url: str, redis: Redis) -> float:
    """Return the longest time in ms that an update of the overview takes, while the queue changes."""
    page = await (await browser.new_context(viewport={"width": 1280, "height": 900})).new_page()
    await page.goto(url)
    for number in range(_SECONDS * 2):
        await redis.zadd("arq:queue", {f"new-{number}": number})
        await redis.zrem("arq:queue", f"wait-{number}", f"wait-{number + 50}")
        await asyncio.sleep(0.5)
    times = await page.evaluate(
        "performance.getEntriesByName('page-update').filter(e => e.duration).map(e => e.duration)"
    )
    await page.context.close()
    return max(times)


@asynccontextmanager
async def open_pages(url: str, count: int) -> AsyncIterator[None]:
    """Hold the streams of some pages open."""
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=None)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, limits=limits, timeout=60))
        for _ in range(count):
            await stack.enter_async_context(http.stream("GET", "/?live=1"))
        yield


async def commands_per_second(redis: Redis) -> float:
    """Return the commands that Redis gets in a second."""
    before = (await redis.info("stats"))["total_commands_processed"]
    await asyncio.sleep(_SECONDS)
    return float((await redis.info("stats"))["total_commands_processed"] - before) / _SECONDS


async def measure(settings: Settings, report: Report) -> int:
    """Measure on given servers. Return the exit code."""
    settings = settings.model_copy(update={"web": settings.web.model_copy(update={"port": 0})})
    redis, app = Redis.from_url(settings.redis.url), web_app(settings, jobs=[])
    await fill(settings, redis)
    async with serving(settings, app) as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser())
        empty = await first_paint(browser, "data:text/html,<p>empty")
        report.add([Row("first paint of an empty page without a server, median", "ms", empty)])
        for path in _VIEWS:
            paint = await first_paint(browser, url + path)
            report.add([at_most(f"first paint of {path}, median", "ms", paint, _PAINT_MS)])
        longest = await longest_update(browser, url, redis)
        report.add([at_most("update of the overview, maximum", "ms", longest, _UPDATE_MS)])
        await browser.close()
        async with open_pages(url, 1):
            one = await commands_per_second(redis)
        async with open_pages(url, _PAGES):
            begun = psutil.Process().cpu_times()
            busy = await commands_per_second(redis)
            ended = psutil.Process().cpu_times()
        cpu = 100 * (ended.user - begun.user + ended.system - begun.system) / _SECONDS
        report.add(
            [
                at_most("commands of Redis, one page open", "a second", one, _COMMANDS),
                at_most(f"commands of Redis, {_PAGES} pages open", "a second", busy, round(one * 1.2 + 5)),
                Row(f"CPU of the server, {_PAGES} pages open", "% of a core", cpu),
            ]
        )
    version = str((await redis.info("server")).get("valkey_version"))
    await app.close()
    await redis.aclose()
    return report.finish({"valkey": version}, keep=not quick())


def main() -> int:
    """Start the servers, and measure. Return the exit code."""
    refuse_arguments(__doc__)
    with services(environment={}) as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        title = f"{_RUNS:,} runs and {_LETTERS:,} dead letters, Chromium"
        return asyncio.run(measure(settings, Report("page", title)))


if __name__ == "__main__":
    sys.exit(main())
