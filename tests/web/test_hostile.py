"""Hostile requests: every answer is one that the document allows, and never 500."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given
from hypothesis import settings as with_options
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.support.workers import with_web
from tests.web.conftest import connect
from tests.web.jobs import JOBS
from worker import Settings
from worker.db.engine import Database
from worker.queue.dead_letters import encode_letter
from worker.web import web_app
from worker.web.table import OPERATIONS

PROBLEM = "application/problem+json"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


async def test_every_error_is_a_problem(settings: Settings, database: Database, redis: Redis) -> None:
    app = web_app(with_web(settings, max_body_bytes=1024), jobs=JOBS)
    body = {"content-type": "application/json"}

    async def chunks() -> Any:
        for _ in range(10):
            yield b"x" * 1000

    async with connect(app) as http:
        for request, status in (
            (http.get("/nothing"), 404),
            (http.get("/runs/none"), 404),
            (http.get("/runs//steps"), 404),
            (http.get("/quarantine/99999999999999999999"), 404),
            (http.delete("/runs"), 405),
            (http.options("/runs"), 405),
            (http.post("/openapi.json"), 405),
            (http.post("/runs", content=b"{}"), 415),
            (http.post("/runs", content=b"{", headers=body), 400),
            (http.post("/runs", content=b'{"job": "\\ud800"}', headers=body), 400),
            (http.post("/runs", content=b"[" * 1000, headers=body), 400),
            (http.post("/runs", content=b"x" * 1025, headers=body), 413),
            (http.post("/runs", content=chunks(), headers=body), 413),
            (http.get("/runs?limit=0"), 422),
            (http.get("/runs?limit=1&limit=2"), 422),
            (http.get("/queues?x=1"), 422),
        ):
            response = await request
            assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM), response.text
            assert response.json()["status"] == status
            assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert (await http.delete("/runs")).headers["allow"] == "GET, POST"
    await app.close()


async def test_unavailable_servers_are_503(settings: Settings) -> None:
    away = settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"url": "redis://127.0.0.1:1"}),
            "database": settings.database.model_copy(
                update={"url": settings.database.url.rpartition(":")[0] + ":1/postgres"}
            ),
        }
    )
    app = web_app(away, jobs=JOBS)
    async with connect(app) as http:
        for path in ("/overview", "/runs", "/quarantine"):
            response = await http.get(path)
            assert (response.status_code, response.headers["content-type"]) == (503, PROBLEM), path
            assert settings.database.url.split(":")[2].split("@")[0] not in response.text  # the password
    await app.close()


async def test_any_ids_and_bodies_get_an_answer_that_the_document_allows(
    api: Any, http: httpx.AsyncClient, redis: Redis
) -> None:
    document = (await http.get("/openapi.json")).json()
    told: list[tuple[Any, int, str]] = []

    @with_options(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(OPERATIONS), st.text(max_size=30), st.text(max_size=10), json_values)
    def collect(operation: Any, name: str, text: str, value: Any) -> None:
        if operation.content == "json" and operation.name != "run_checks":
            told.append((operation, name, text, value))  # type: ignore[arg-type]

    collect()
    for operation, name, text, value in told:  # type: ignore[misc]
        path = operation.path
        for parameter in operation.parameters:
            path = path.replace(f"{{{parameter}}}", quote(name.encode(errors="surrogatepass"), safe=""))
        fields = list(operation.body.model_fields) if operation.body else []
        body = value if isinstance(value, dict) or not fields else {fields[0]: value, fields[-1]: [text]}
        content = json.dumps(body).encode() if operation.body else None
        query = {"cursor": text} if operation.query and "cursor" in operation.query.model_fields else {}
        headers = {"content-type": "application/json"} if content else {}
        response = await http.request(operation.method, path, params=query, content=content, headers=headers)
        allowed = set(document["paths"][operation.path][operation.method.lower()]["responses"]) | {"404", "405"}
        assert str(response.status_code) in allowed - {"500"}, (operation.name, name, body, response.text)


async def test_hostile_values_in_redis_are_shown_escaped_and_break_nothing(
    http: httpx.AsyncClient, redis: Redis
) -> None:
    name = b"\xff<script>\x1b[31m"
    await redis.zadd("arq:queue", {name: 1.0, "j": float("inf")})
    await redis.set(b"arq:job:" + name, b'{"f": "\\ud800", "k": {"a": NaN}}')
    await redis.hset(b"worker:run:j", mapping={b"rows": b"NaN", b"percent": b"inf", b"error": b"\xff", b"total": b"-1"})
    await redis.hset("worker:workers", mapping={b"\xffw": b'{"seen_at": 1, "state": [], "queue": 3, "jobs": 7}'})
    await redis.hset("worker:dead", mapping={b"\xff": b"junk", "x": b"{}"})
    await redis.zadd("worker:dead:at", {b"\xff": 5, "x": float("inf"), "y": 3})
    await redis.set("worker:pace", "not a hash")
    for path in ("/overview", "/runs/j", "/dead-letters", "/limits", "/queues", "/workers"):
        response = await http.get(path)
        assert response.status_code == 200, (path, response.text)
        response.json()
    assert (await http.post("/orders/pace", json={"targets": ["x"], "rows_per_second": 1})).status_code == 409


async def test_pages_go_on_behind_any_time_and_refuse_cursors_of_others(http: httpx.AsyncClient, redis: Redis) -> None:
    letter = encode_letter(
        b'{"f": "greet"}', job="greet", queue="arq:queue", attempts=1, error="x", trace="", in_ledger=False
    )
    for name, at in (("first", "inf"), ("second", 7.0), ("third", "-inf")):
        await redis.zadd("worker:dead:at", {name: float(at)})
        await redis.hset("worker:dead", name, letter)
    found, cursor = [], ""
    while cursor is not None:
        page = await http.get("/dead-letters", params={"limit": 1} | ({"cursor": cursor} if cursor else {}))
        assert page.status_code == 200, page.text
        found += [one["id"] for one in page.json()["items"]]
        cursor = page.json()["next_cursor"]
    assert found == ["first", "second", "third"]
    for path, place in (("/events/recent", ["x"]), ("/dead-letters", [float("nan"), "x"]), ("/runs", ["x", "y"])):
        made = base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")
        response = await http.get(path, params={"cursor": made})
        assert (response.status_code, response.json()["type"]) == (422, "urn:longhaul:problem:invalid-cursor"), path


async def test_any_number_of_a_mirror_gives_a_page(http: httpx.AsyncClient, redis: Redis) -> None:
    await redis.zadd("arq:queue", {"j": 1})
    numbers = (
        "rows",
        "total",
        "percent",
        "rate",
        "eta_seconds",
        "batch_size",
        "batch_ms",
        "started_at",
        "stalled_since",
    )
    for value in ("1e308", "-1e308", "0.5", "9" * 400):
        await redis.hset("worker:run:j", mapping={"state": "running", "job": "greet"} | dict.fromkeys(numbers, value))
        for path in ("/", "/page/runs/j", "/runs/j"):
            response = await http.get(path)
            assert response.status_code == 200, (value, path, response.text[-500:])
