"""Orders through the API: enqueue once, steer, retry and delete, each on real servers."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.support.waiting import until, until_status
from tests.support.workers import with_web, working
from tests.web.conftest import connect
from tests.web.jobs import JOBS, brittle, greet, walk
from worker import Client, JobFailed, Settings
from worker.db.engine import Database
from worker.queue import keys
from worker.web import web_app
from worker.web.tokens import TokenFile


async def order(http: httpx.AsyncClient, path: str, body: Any, status: int = 200, **headers: str) -> Any:
    """Send an order, and return the JSON of the response."""
    response = await http.post(path, json=body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def test_enqueue_obeys_the_rules_of_the_job_and_an_idempotency_key_makes_one_run(
    http: httpx.AsyncClient, client: Client, redis: Redis
) -> None:
    body = {"job": "greet", "arguments": {"name": "Ada", "day": "2026-01-31"}, "id": "x/1", "delay_seconds": 60}
    assert await order(http, "/runs", body, 201) == {"id": "x/1", "job": "greet", "is_new": True}
    assert (await order(http, "/runs", body))["is_new"] is False
    assert await redis.zscore("worker:priority:3:arq:queue", "x/1") is not None  # the job's own priority
    assert (await redis.get("arq:job:x/1") or b"").count(b"2026-01-31") == 1
    [(_, record)] = await redis.xrange(keys.ORDERS)
    assert (record[b"order"], record[b"by"], record[b"targets"]) == (b"enqueue", b"web:local", b'["x/1"]')

    body = {"job": "greet", "arguments": {"name": "Eve"}}
    key = {"Idempotency-Key": "order 7"}
    made = await order(http, "/runs", body, 201, **key)
    assert await order(http, "/runs", body, **key) == made | {"is_new": False}
    assert await redis.zcard("arq:queue") == 2
    refused = await order(http, "/runs", body | {"priority": 1}, 422, **key)
    assert refused["type"] == "urn:longhaul:problem:idempotency-key-reused"
    await redis.delete(f"arq:job:{made['id']}")  # it has run, and its result has expired
    await redis.zrem("arq:queue", made["id"])
    assert (await order(http, "/runs", body, **key))["id"] == made["id"]
    assert await redis.zcard("arq:queue") == 1

    for wrong, status in (
        ({"job": "gret"}, 404),
        ({"job": "greet"}, 422),  # no name
        ({"job": "greet", "arguments": {"name": "x", "times": "many"}}, 422),
        ({"job": "greet", "arguments": {"name": "x"}, "queue": keys.DEAD_AT}, 422),
        ({"job": "greet", "arguments": {"name": "x"}, "delay_seconds": 1, "at": "2027-01-01T00:00:00Z"}, 422),
        ({"job": "greet", "arguments": {"name": "x"}, "at": "2027-01-01T00:00:00"}, 422),
        ({"job": "greet", "arguments": {"name": "x"}, "unknown": 1}, 422),
        ({"job": "greet", "arguments": {"name": "x"}, "priority": "3"}, 422),
    ):
        await order(http, "/runs", wrong, status)
    assert await redis.zcard("arq:queue") == 1


@pytest.mark.parametrize("key", [keys.ORDERS, keys.EVENTS])
async def test_an_enqueue_that_cannot_be_recorded_is_done_and_logged(
    http: httpx.AsyncClient, client: Client, redis: Redis, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    await redis.set(key, "no stream")
    made = await order(http, "/runs", {"job": "greet", "arguments": {"name": "Ada"}}, 201)
    by_hand = await order(http, "/cron/nightly/run", {}, 201)
    assert set(await redis.zrange("arq:queue", 0, -1)) == {made["id"].encode(), by_hand["id"].encode()}
    logged = [one.getMessage() for one in caplog.records if "order not recorded" in one.getMessage()]
    assert [line.split()[3:5] for line in logged] == [
        ["order=enqueue", "by=web:local"],
        ["order=cron_run", "by=web:local"],
    ]
    await redis.delete(key)


async def test_an_order_by_null_is_obeyed_and_taken_back(
    http: httpx.AsyncClient, client: Client, redis: Redis, fast: Settings
) -> None:
    part = {"targets": ["greet"], "where": {"day": None, "times": 1}}
    await order(http, "/orders/pause", part)
    assert await redis.smembers(keys.PAUSED) == {b"greet?day=null&times=1"}
    async with working(fast, greet):
        held = await client.enqueue(greet, "Ada")  # its day is None by default
        other = await client.enqueue(greet, "Eve", day=date(2026, 1, 31))
        assert await other.result(timeout=120) == "hello Eve"
        await until_status(held, "paused")
        assert (await order(http, "/orders/resume", part))["changed"] == ["greet"]
        assert await held.result(timeout=120) == "hello Ada"


async def test_orders_steer_runs_and_jobs(http: httpx.AsyncClient, client: Client, redis: Redis) -> None:
    await client.enqueue(greet.options(id="r", delay=60), "Ada")
    assert await order(http, "/orders/pause", {"targets": ["r", "greet"]}) == {
        "changed": ["r", "greet"],
        "unchanged": [],
    }
    assert (await http.get("/runs/r")).json()["paused_by"] == ["r", "greet"]
    await order(http, "/orders/pause", {"targets": ["greet"], "where": {"name": "Eve"}})
    await order(http, "/orders/pause", {"targets": ["greet"], "where": {"nam": "Eve"}}, 422)
    assert await redis.smembers(keys.PAUSED) == {b"r", b"greet", b"greet?name=Eve"}
    assert await order(http, "/orders/resume", {"targets": ["r", "never"]}) == {
        "changed": ["r"],
        "unchanged": ["never"],
    }
    await order(http, "/orders/pace", {"targets": ["*"], "rows_per_second": 50})
    await order(http, "/orders/limit", {"name": "greet", "concurrency": 2, "rate_per_second": 0.5})
    assert await redis.hgetall(keys.PACE) == {b"*": b"50"}
    assert (await redis.hgetall(keys.LIMITS), await redis.hgetall(keys.RATES)) == ({b"greet": b"2"}, {b"greet": b"0.5"})
    await order(http, "/orders/limit", {"name": "greet", "concurrency": None})
    removed = await order(http, "/orders/pace", {"targets": ["*"], "rows_per_second": None})
    assert removed == {"changed": ["*"], "unchanged": [], "before": [50], "rows_per_second": None}
    assert (await redis.exists(keys.PACE), await redis.hget(keys.RATES, "greet")) == (0, b"0.5")
    assert await order(http, "/orders/cancel", {"runs": ["r", "never"]}) == {"changed": ["r"], "unchanged": ["never"]}
    await redis.hset(keys.WORKERS, "north", "{}")  # type: ignore[misc]
    assert await order(http, "/orders/drain", {"workers": ["north", "gone"]}) == {
        "changed": ["north"],
        "unchanged": ["gone"],
    }
    assert await redis.smembers(keys.DRAINED) == {b"north"}
    made = await order(http, "/cron/nightly/run", {"arguments": {"depth": "deep"}}, 201)
    assert made["id"].startswith("cron:nightly:")
    await order(http, "/cron/greet/run", {}, 422)
    orders = [fields for _, fields in await redis.xrange(keys.ORDERS)]
    assert {fields[b"by"] for fields in orders} == {b"web:local"}
    last = orders[-1]
    assert (last[b"order"], json.loads(last[b"targets"])) == (b"cron_run", ["nightly"])
    assert json.loads(last[b"details"]) == {"run": made["id"]}


async def test_failures_are_run_again_and_deleted(
    http: httpx.AsyncClient, client: Client, fast: Settings, database: Database
) -> None:
    async with working(fast, *JOBS):
        for name in ("b1", "b2"):
            with pytest.raises(JobFailed):
                await (await client.enqueue(brittle.options(id=name))).result(timeout=60)
        await (await client.enqueue(walk.options(id="w"))).result(timeout=60)
        assert await order(http, "/orders/retry", {"runs": ["w", "none"], "from_start": True}) == {
            "changed": ["w"],
            "unchanged": ["none"],
        }
        await client.run("w").result(timeout=60)
        again = await order(http, "/dead-letters/retry", {"runs": ["b1", "w"]})
        assert again == {"changed": ["b1"], "unchanged": ["w"]}

        async def dead_again() -> bool:
            return len((await http.get("/dead-letters")).json()["items"]) == 2

        await until(dead_again)
    await order(http, "/dead-letters/delete", {"job": "brittle", "all": True}, 422)
    deleted = await order(http, "/dead-letters/delete", {"all": True})
    assert sorted(deleted["changed"]) == ["b1", "b2"]
    assert await order(http, "/quarantine/discard", {"run": "w"}) == {"changed": 0}
    assert await order(http, "/quarantine/retry", {"runs": ["w"]}) == {"changed": [], "unchanged": ["w"], "rows": 0}


async def test_the_key_of_a_refused_request_can_be_used_for_the_corrected_one(
    http: httpx.AsyncClient, client: Client, redis: Redis
) -> None:
    key = {"Idempotency-Key": "order 8"}
    await order(http, "/runs", {"job": "gret", "arguments": {"name": "Ada"}}, 404, **key)
    await order(http, "/runs", {"job": "greet", "arguments": {"name": 7}}, 422, **key)
    made = await order(http, "/runs", {"job": "greet", "arguments": {"name": "Ada"}}, 201, **key)
    assert await redis.zrange("arq:queue", 0, -1) == [made["id"].encode()]


async def test_times_with_a_zone_are_taken(http: httpx.AsyncClient, client: Client, redis: Redis) -> None:
    body = {"job": "greet", "arguments": {"name": "Ada"}, "id": "later"}
    await order(http, "/runs", body | {"at": "2100-01-01T02:00:00+02:00"}, 201)
    assert await redis.zscore("arq:queue", "later") == 4_102_444_800_000
    for at in ("2100-01-01T00:00:00", 4_102_444_800, "4102444800", "9999-12-31T23:59:59-23:59", "1969-01-01T00:00:00Z"):
        assert "body.at: " in (await order(http, "/runs", body | {"at": at}, 422))["detail"]
    old = {"job": "greet", "before": "2020-01-01T00:00:00Z"}
    for path in ("/dead-letters/retry", "/dead-letters/delete"):
        assert await order(http, path, old) == {"changed": [], "unchanged": []}


async def test_tokens_allow_their_roles_and_nothing_else(
    settings: Settings, database: Database, redis: Redis, tmp_path: Any
) -> None:
    file = TokenFile(tmp_path / "tokens.toml")
    reader, operator = file.create("reader", ["read"]), file.create("operator", ["operate"], days=1)
    service = file.create("service", ["enqueue"])
    old = file.create("old", ["read"], days=-1)
    assert reader not in file.path.read_text() and file.path.stat().st_mode & 0o777 == 0o600
    app = web_app(with_web(settings, tokens_file=str(file.path), failed_tokens_per_minute=3), jobs=JOBS)
    pause = {"targets": ["x"]}
    async with connect(app, token=reader) as one, connect(app, token=operator, address="10.0.0.9") as two:
        assert (await one.get("/runs")).status_code == 200
        assert (await one.post("/orders/pause", json=pause)).status_code == 403
        assert (await two.post("/orders/pause", json=pause)).status_code == 200
        assert (await two.get("/runs")).status_code == 403
        assert (await two.post("/runs", json={"job": "greet"})).status_code == 403
    async with connect(app, token=service) as three:
        assert (await three.post("/runs", json={"job": "greet", "arguments": {"name": "Ada"}})).status_code == 201
    # The run of a service is no order: there may be thousands a second.
    assert [fields[b"by"] for _, fields in await redis.xrange(keys.ORDERS)] == [b"web:operator"]
    async with connect(app, address="10.0.0.7") as none, connect(app, token=old, address="10.0.0.7") as expired:
        first = await none.get("/openapi.json")
        assert (first.status_code, first.headers["www-authenticate"]) == (401, 'Bearer realm="longhaul"')
        assert [(await expired.get("/runs")).status_code for _ in range(3)] == [401, 401, 429]
    async with connect(app, token=reader, address="10.0.0.7") as refused, connect(app, token=reader) as other:
        answer = await refused.get("/runs")
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (429, True)
        assert (await other.get("/runs")).status_code == 200
    await app.close()


async def test_a_file_of_tokens_that_becomes_wrong_is_logged_once(
    settings: Settings, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = TokenFile(tmp_path / "tokens.toml")
    text = file.create("reader", ["read"])
    app = web_app(with_web(settings, tokens_file=str(file.path)), jobs=JOBS)
    file.path.write_text("reader = 1")
    async with connect(app, token=text) as http, connect(app) as nameless:
        for _ in range(2):
            assert (await http.get("/openapi.json")).json()["type"] == "urn:longhaul:problem:tokens-not-readable"
            assert (await nameless.get("/openapi.json")).status_code == 401
    [record] = [one for one in caplog.records if one.name == "longhaul.web"]
    assert "tokens.toml: " in record.getMessage()
    await app.close()


async def test_without_tokens_only_this_machine_and_its_own_pages_may_ask(api: Any) -> None:
    async with connect(api) as http, connect(api, address="10.0.0.7") as far:
        assert (await http.get("/queues")).status_code == 200
        assert (await far.get("/queues")).status_code == 401
        for headers, status in (
            ({"X-Forwarded-For": "10.0.0.7"}, 401),
            ({"Host": "evil.example"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"}, 200),
        ):
            response = await http.get("/queues", headers=headers)
            assert response.status_code == status, headers
            assert "access-control-allow-origin" not in response.headers
