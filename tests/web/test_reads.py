"""Reads of the API: runs of the ledger and of Redis, their parts, queues, workers, jobs, failures, checks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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
    assert [one["quarantined"] for one in (await read(http, "/runs"))["items"]] == [1]
    assert (await read(http, "/overview"))["quarantined"] == 1
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

    ended = {one["id"]: one for one in (await read(http, "/ended-runs"))["items"]}
    assert {name: (one["state"], one["rows"]) for name, one in ended.items()} == {
        "w/1": ("succeeded", 29),
        "b1": ("dead", None),
    }, "a run without a loop that succeeds within a second is left out"
    assert ended["w/1"]["finished_at"] > ended["w/1"]["began_at"] and 0 < ended["w/1"]["seconds"] < 60
    assert ended["b1"]["error"] == dead["error"]

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
    await client.redis.set("arq:in-progress:later", "north")  # as a worker that has claimed it
    claimed = await read(http, "/runs/later")
    assert (claimed["state"], claimed["due_at"]) == ("running", None)
    overview = await read(http, "/overview")
    assert [(one["id"], one["state"], one["due_at"]) for one in overview["runs"]] == [("later", "running", None)]
    assert (overview["queues"][0]["deferred"], overview["queues"][0]["running"]) == (0, 1)


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
    assert (limits["nightly"]["by"], limits["nightly"]["running"]) == (None, 0)
    assert (limits["greet"]["by"], limits["greet"]["running"], limits["greet"]["held"]) == ("name", None, None)
    assert limits["junk"]["concurrency"] is None
    checks = {one["check"]: one["level"] for one in (await read(http, "/doctor"))["items"]}
    assert checks["postgres ledger"] == "fine"
    assert [one["name"] for one in (await read(http, "/queues"))["items"]] == ["arq:queue"]


async def test_ended_runs_took_the_time_since_they_were_run_again(http: httpx.AsyncClient, redis: Redis) -> None:
    times = (
        *(("old", "started", 0), ("old", "dead", 10), ("old", "started", 100), ("old", "retry", 105)),
        *(("old", "started", 110), ("old", "succeeded", 120), ("again", "started", 0), ("again", "succeeded", 9)),
        *(("again", "started", 50), ("cut", "succeeded", 60), ("x:hand-1:2", "started", 0)),
        *(("x:hand-1:2", "succeeded", 90), *((f"short-{n}", "started", 130) for n in range(30))),
        *((f"short-{n}", "succeeded", 130) for n in range(30)),
    )
    begun = datetime(2026, 11, 27, 3, tzinfo=UTC)
    for run, kind, seconds in times:
        at = (begun + timedelta(seconds=seconds)).isoformat()
        await redis.xadd("worker:events", {"event": kind, "run": run, "job": "j", "at": at})
    items = (await read(http, "/ended-runs"))["items"]
    assert [(one["id"], one["state"], one["seconds"]) for one in items] == [
        ("old", "succeeded", 20.0),
        ("cut", "succeeded", None),
    ]
    page = (await http.get("/")).text
    assert 'id="ended-old"' in page and "20 s" in page and "short-1" not in page.partition("region-ended")[2]
    history = (await read(http, "/jobs/j/runs"))["items"]
    assert {one["id"]: one["seconds"] for one in history if one["id"] in ("old", "again")} == {
        "old": 20.0,
        "again": None,
    }


async def test_all_views_agree_on_a_run_that_was_run_again(
    http: httpx.AsyncClient, redis: Redis, database: Database
) -> None:
    begun = datetime(2026, 11, 27, 3, tzinfo=UTC)
    events = [("started", 0), ("dead", 3), ("started", 50), ("retry", 52), ("started", 55), ("retry", 57)]
    for kind, seconds in [*events, ("started", 60), ("dead", 71)]:
        at = (begun + timedelta(seconds=seconds)).isoformat()
        await redis.xadd("worker:events", {"event": kind, "run": "twice", "job": "walk", "at": at})
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO worker.run (id, job, queue, payload, arguments, state, fence, attempt, batches_before, "
                "created_at, started_at, finished_at) VALUES ('twice', 'walk', 'arq:queue', '{}', '{}', 'dead', 4, 2, "
                "0, :begun, :started, :ended)"
            ),
            {"begun": begun, "started": begun + timedelta(seconds=60), "ended": begun + timedelta(seconds=71)},
        )
    shown = await read(http, "/runs/twice")
    [listed], [ended] = (await read(http, "/runs"))["items"], (await read(http, "/ended-runs"))["items"]
    [past] = (await read(http, "/jobs/walk/runs"))["items"]
    assert [one["seconds"] for one in (shown, listed, ended, past)] == [21.0] * 4
    assert (shown["attempts"], listed["attempts"], ended["attempt"], past["attempt"]) == (3, 3, 3, 3)
    page = (await http.get("/page/runs/twice")).text
    assert "<dt>Took</dt><dd>21 s</dd>" in page
    assert "2 without progress" in page.partition("<dt>Attempt</dt>")[2].partition("</dl>")[0]


async def test_a_run_that_waits_for_its_next_attempt_says_when_and_why(
    http: httpx.AsyncClient, client: Client, redis: Redis
) -> None:
    await client.enqueue(greet.options(id="fails", delay=3600), "Ada")
    for kind, more in (("started", {}), ("retry", {"error": "TimeoutError: took longer than 300 s"})):
        at = datetime.now(UTC).isoformat()
        await redis.xadd("worker:events", {"event": kind, "run": "fails", "job": "greet", "at": at, **more})
    [listed], shown = (await read(http, "/overview"))["runs"], await read(http, "/runs/fails")
    for one in (listed, shown):
        assert (one["state"], one["retry_error"]) == ("deferred", "TimeoutError: took longer than 300 s")
        assert one["due_at"] is not None
    for path in ("/", "/page/runs/fails"):
        note = (await http.get(path)).text.partition("tried again")[2]
        assert "in 59 min" in note[:200] and "took longer than 300 s" in note[:300]


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
