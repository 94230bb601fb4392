"""Reads of the API: runs of the ledger and of Redis, their parts, queues, workers, jobs, failures, checks."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import working
from tests.web.jobs import JOBS, brittle, greet, walk
from worker import Client, JobFailed, Settings
from worker.db.engine import Database


async def read(http: httpx.AsyncClient, path: str, **query: Any) -> Any:
    """Return the JSON of a response that succeeds."""
    response = await http.get(path, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


async def run_all(client: Client, fast: Settings, database: Database) -> None:
    """Run a walk that quarantines a row, a job that fails, one that succeeds; leave one in the queue."""
    await fill_authors(database, 30)
    async with database.transaction() as session:
        await session.execute(text("UPDATE author SET seen = 13 WHERE id = 13"))
    async with working(fast, *JOBS):
        runs = [await client.enqueue(walk.options(id="w/1")), await client.enqueue(brittle.options(id="b1"))]
        runs += [await client.enqueue(greet.options(id="g1"), "Ada")]
        await runs[0].result(timeout=60)
        with pytest.raises(JobFailed):
            await runs[1].result(timeout=60)
        await runs[2].result(timeout=60)
    await client.enqueue(greet.options(id="later", delay=3600), "Eve", times=2)


async def test_reads_show_runs_of_the_ledger_and_of_redis_with_their_parts(
    http: httpx.AsyncClient, client: Client, fast: Settings, database: Database
) -> None:
    await run_all(client, fast, database)

    [listed] = (await read(http, "/runs"))["items"]
    assert (listed["id"], listed["job"], listed["state"], listed["in_ledger"]) == ("w/1", "walk", "succeeded", True)
    assert (await read(http, "/runs", state="dead", job="walk"))["items"] == []
    assert (await read(http, "/runs", search="W/"))["items"] == [listed]

    shown = await read(http, "/runs/w%2F1")  # an id with a slash
    assert (shown["result"], shown["quarantined"], shown["arguments"]) == (29, 1, {})
    [step] = (await read(http, "/runs/w%2F1/steps"))["items"]
    assert (step["rows"], step["done"], step["percent"], step["key"][0][0]) == (29, True, 100.0, "author.id")
    assert (await read(http, "/runs/w%2F1/hands")) == {"hands": [], "ranges": []}
    assert {one["step"] for one in (await read(http, "/runs/w%2F1/batches"))["items"]} <= {step["name"]}

    dead = await read(http, "/runs/b1")
    assert (dead["state"], dead["in_ledger"]) == ("dead", False)
    assert "<script>" in dead["error"] and "Traceback" in dead["traceback"]
    ended = await read(http, "/runs/g1")
    assert (ended["state"], ended["result"], ended["arguments"]) == ("succeeded", "hello Ada", {"name": "Ada"})
    waiting = await read(http, "/runs/later")
    assert (waiting["state"], waiting["job"]) == ("deferred", "greet")
    assert waiting["arguments"] == {"name": "Eve", "times": 2} and waiting["due_at"] > "2026"

    letter = await read(http, "/dead-letters/b1")
    assert [letter["id"]] == [one["id"] for one in (await read(http, "/dead-letters", job="brittle"))["items"]]
    assert letter["error"] == dead["error"] and letter["arguments"] == {}
    [row] = (await read(http, "/quarantine", run="w/1"))["items"]
    assert (row["key"], row["error"]) == ([13], "ValueError: unlucky")
    assert await read(http, f"/quarantine/{row['id']}") == row

    overview = await read(http, "/overview")
    assert overview["queues"][0] | {"oldest_due_at": 0} == {
        "name": "arq:queue",
        "waiting": 0,
        "deferred": 1,
        "running": 0,
        "oldest_due_at": 0,
        "is_paused": False,
    }
    assert [(one["id"], one["state"]) for one in overview["runs"]] == [("later", "deferred")]
    assert overview["dead_letters"] == 1


async def test_reads_show_workers_jobs_cron_limits_and_checks(
    http: httpx.AsyncClient, client: Client, fast: Settings, redis: Redis
) -> None:
    async with working(fast, *JOBS) as worker:

        async def workers() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await read(http, "/workers"))["items"]
            return found

        [seen] = await until(workers)
        assert (seen["name"], seen["state"], seen["jobs"]) == (worker.name, "running", [])
    jobs = {one["name"]: one for one in (await read(http, "/jobs"))["items"]}
    assert jobs["greet"]["arguments"]["required"] == ["name"]
    assert (jobs["greet"]["priority"], jobs["nightly"]["cron"]) == (3, ["0 3 * * * UTC"])
    assert jobs["nightly"]["arguments"]["properties"]["depth"]["enum"] == ["shallow", "deep"]
    assert await read(http, "/jobs/greet") == jobs["greet"]
    [line] = (await read(http, "/cron"))["items"]
    assert (line["job"], line["last_at"]) == ("nightly", None) and "T03:00:00" in line["next_at"]

    await redis.hset("worker:limits", mapping={"nightly": "5", "junk": "\x00"})
    limits = {one["name"]: one for one in (await read(http, "/limits"))["items"]}
    assert (limits["nightly"]["concurrency"], limits["nightly"]["job_concurrency"]) == (5, 2)
    assert limits["junk"]["concurrency"] is None
    checks = {one["check"]: one["level"] for one in (await read(http, "/doctor"))["items"]}
    assert checks["postgres ledger"] == "fine"
    assert [one["name"] for one in (await read(http, "/queues"))["items"]] == ["arq:queue"]


async def test_lists_are_paged_by_cursors(
    http: httpx.AsyncClient, client: Client, fast: Settings, database: Database
) -> None:
    async with working(fast, *JOBS):
        for number in range(5):
            with pytest.raises(JobFailed):
                await (await client.enqueue(brittle.options(id=f"b{number}"))).result(timeout=60)
            await (await client.enqueue(walk.options(id=f"w{number}"))).result(timeout=60)
    for path, names in (("/runs", "w"), ("/dead-letters", "b")):
        found, cursor = [], None
        while True:
            page = await read(http, path, limit=2, **({"cursor": cursor} if cursor else {}))
            assert len(page["items"]) <= 2
            found += [one["id"] for one in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert sorted(found) == [f"{names}{number}" for number in range(5)]
    for bad in ("x", "W10", "bnVsbA", "[]"):
        response = await http.get("/runs", params={"cursor": bad})
        assert (response.status_code, response.json()["type"]) == (422, "urn:longhaul:problem:invalid-cursor")
