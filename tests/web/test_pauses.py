"""Runs that a pause concerns: one that works to its next attempt, and one that has never begun."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime

import httpx
from redis.asyncio import Redis

from tests.support.waiting import until
from tests.support.workers import with_web, working
from tests.web.conftest import connect
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.queue.audit import ordering_as
from worker.web import web_app

_TAGS = re.compile(r"<[^>]+>|\s+")


@job
async def hold(ctx: JobContext) -> None:
    """Work until a test lets it end."""
    began, end = GATES[ctx.run_id]
    began.set()
    await end.wait()


GATES: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}


async def shown(http: httpx.AsyncClient, path: str) -> str:
    """Return the words of a page."""
    page = (await http.get(path)).text
    return re.sub(r" +", " ", _TAGS.sub(" ", page.partition("<main")[2]))


async def test_a_run_without_a_boundary_is_not_called_paused(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    began, end = GATES["held"] = asyncio.Event(), asyncio.Event()
    app = web_app(with_web(fast, refresh_seconds=0.001), jobs=[hold])
    async with working(fast, hold), connect(app) as http:
        run = await client.enqueue(hold.options(id="held"))
        await began.wait()
        await until(lambda: redis.exists("worker:run:held"))
        used = re.search(r"(\d+) of (\d+) s until its timeout", await shown(http, "/"))
        timeout = (await http.get("/jobs/hold")).json()["timeout_seconds"]
        assert used is not None and 0 <= int(used[1]) < int(used[2]) == timeout
        with ordering_as("web:ada"):
            await client.pause("hold")
        await until(lambda: redis.exists("worker:run:held"))
        read = (await http.get("/runs/held")).json()
        assert (read["state"], read["paused_by"]) == ("running", ["hold"])
        assert [(one["name"], one["by"]) for one in read["pauses"]] == [("hold", "web:ada")]
        page = await shown(http, "/page/runs/held")
        assert re.search(r"The job hold was paused (now|\d+ s ago) by web:ada ?\. ", page)
        assert "The run still works: the pause acts at its next attempt or batch." in page
        assert "running" in page.partition("The job hold")[0] and "paused" not in page.partition("The job hold")[0]
        assert "works until the pause acts" in await shown(http, "/")
        end.set()
        await run.result(timeout=60)
    await app.close()


async def test_a_run_that_a_pause_holds_back_has_not_begun(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    enqueued = datetime.now(UTC)
    with ordering_as("web:ada"):
        await client.pause("hold")
    app = web_app(with_web(fast, refresh_seconds=0.001), jobs=[hold])
    async with working(fast, hold), connect(app) as http:
        await client.enqueue(hold.options(id="parked"))
        await until(lambda: _is_parked(redis))
        read = (await http.get("/runs/parked")).json()
        for name in ("worker", "attempt", "began_at", "started_at", "due_at", "seconds"):
            assert read[name] is None, name
        assert (read["state"], read["attempts"]) == ("paused", 0)
        assert abs((datetime.fromisoformat(read["created_at"]) - enqueued).total_seconds()) < 60
        [listed] = (await http.get("/overview")).json()["runs"]
        for name in ("state", "worker", "attempt", "attempts", "began_at", "started_at", "due_at"):
            assert listed[name] == read[name], name
        page = await shown(http, "/page/runs/parked")
        assert "It has not begun. When that is resumed, it begins." in page
        assert "Due – when it is resumed" in page and "Worker –" in page and "Attempt –" in page and "Begun" not in page
        legend = page.partition("Its story")[2]
        assert "worked" not in legend and "paused" in legend
        assert "when resumed" in await shown(http, "/")
        await client.pause("parked")
        page = await shown(http, "/page/runs/parked")
        assert re.search(r"Paused (now|\d+ s ago) by client ?\. The job hold was paused", page)
        assert "When all of these are resumed, it begins." in page
    await app.close()


async def _is_parked(redis: Redis) -> bool:
    return await redis.hget("worker:run:parked", "state") == b"paused"  # type: ignore[misc]
