"""An open page reads again only the runs that have changed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx
import pytest
from redis.asyncio import Redis

from tests.support.waiting import until
from tests.support.workers import with_web
from tests.web.jobs import JOBS, greet
from worker import Client, Settings
from worker.db.engine import Database
from worker.queue import keys
from worker.web import WebApp, web_app
from worker.web.run_cache import RunCache


async def count_reads(redis: Redis) -> int:
    """Return how many mirrors and payloads were read since the statistics began."""
    calls = cast(dict[str, Any], await redis.info("commandstats"))
    return sum(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hgetall", "get"))


async def show(app: WebApp) -> dict[str, dict[str, Any]]:
    """Return the runs of the overview, by id."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        return {run["id"]: run for run in (await http.get("/overview")).json()["runs"]}


async def test_runs_that_wait_are_read_once_while_events_are_heard(
    settings: Settings, client: Client, redis: Redis, database: Database
) -> None:
    for number in range(50):
        await client.enqueue(greet.options(id=f"r{number}", delay=60), "x")
    app = web_app(with_web(settings, refresh_seconds=0.001), jobs=JOBS)
    async with app.backend.events.subscribe():  # as an open page does
        assert set(await show(app)) == {f"r{number}" for number in range(50)}
        await redis.config_resetstat()
        for _ in range(5):
            assert (await show(app))["r7"]["job"] == "greet"
        assert await count_reads(redis) == 0
        await redis.hset(keys.RUN + "r7", mapping={"job": "greet", "state": "paused"})  # type: ignore[misc]
        await redis.xadd(keys.EVENTS, {"event": "paused", "run": "r7"})

        async def is_paused() -> bool:
            return bool((await show(app))["r7"]["state"] == "paused")

        await until(is_paused)
        assert await count_reads(redis) <= 2, "one run was read again"
    await redis.config_resetstat()
    await show(app)
    assert await count_reads(redis) >= 50, "without events, nothing is remembered"
    await app.close()


@pytest.mark.parametrize("changed", [True, False])
async def test_what_was_read_before_a_change_is_not_remembered(client: Client, redis: Redis, changed: bool) -> None:
    runs = RunCache(client)
    runs.begin()
    await redis.hset(keys.RUN + "r", mapping={"job": "before"})  # type: ignore[misc]
    reading = asyncio.create_task(runs.read({"r": 1}))
    await asyncio.sleep(0)
    if changed:
        runs.forget("r")  # the event arrives before the answer
    assert (await reading)["r"].job == "before"
    await redis.hset(keys.RUN + "r", mapping={"job": "after"})  # type: ignore[misc]
    assert (await runs.read({"r": 1}))["r"].job == ("after" if changed else "before")
    assert (await runs.read({"r": 2}))["r"].job == "after", "its mark has changed"
