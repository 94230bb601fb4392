"""`/metrics`, `/healthz` and `/readyz` of the HTTP API."""

from __future__ import annotations

from pathlib import Path

import httpx
from redis.asyncio import Redis

from tests.support.scrapes import check_by_promtool, parse
from tests.support.workers import with_web
from tests.web.conftest import connect
from tests.web.jobs import JOBS
from worker.settings import Settings
from worker.types import Database
from worker.web import web_app
from worker.web.tokens import TokenFile


async def test_the_api_shows_queue_outbox_and_servers_to_prometheus(http: httpx.AsyncClient, redis: Redis) -> None:
    await redis.zadd("arq:queue", {"waits": 1_700_000_000_000, "at-once": 0, "later": 33_000_000_000_000})
    found = await http.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=")
    values = parse(found.text)
    assert values["longhaul_queue_due", "arq:queue"] == 2
    assert values["longhaul_queue_entries", "arq:queue"] == 3
    assert values["longhaul_queue_oldest_due_seconds", "arq:queue"] > 80_000_000
    assert values["longhaul_outbox_rows",] == values["longhaul_outbox_refused_rows",] == 0
    assert values["longhaul_server_up", "postgresql"] == values["longhaul_server_up", "redis"] == 1
    ready = (await http.get("/readyz")).json()
    assert ready == {"status": "ok", "checks": {"postgresql": "ok", "redis": "ok", "ledger": "ok"}}
    assert (await http.get("/healthz")).json()["status"] == "ok"
    for path in ("/metrics", "/healthz", "/readyz"):
        assert (await http.head(f"{path}?at=1")).status_code == 200
        refused = await http.post(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    await check_by_promtool(found.text)


async def test_probes_need_no_token_and_metrics_do(settings: Settings, database: Database, tmp_path: Path) -> None:
    file = TokenFile(str(tmp_path / "tokens.toml"))
    reads, enqueues = file.create("prometheus", ["read"]), file.create("shop", ["enqueue"])
    app = web_app(with_web(settings, tokens_file=str(tmp_path / "tokens.toml")), jobs=JOBS)
    expected = [(None, 401), ("lh_wrong", 401), (enqueues, 403), (reads, 200)]
    for token, status in expected:
        async with connect(app, token=token, address="192.0.2.7") as http:
            assert (await http.get("/metrics")).status_code == status
            for path in ("/healthz", "/readyz"):
                assert (await http.get(path)).status_code == 200
    await app.close()


async def test_without_tokens_the_metrics_are_for_this_machine_alone(settings: Settings, database: Database) -> None:
    app = web_app(settings, jobs=JOBS)
    async with connect(app, address="192.0.2.7") as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/healthz")).status_code == 200
    await app.close()


async def test_a_server_that_is_away_is_named_without_its_address(settings: Settings) -> None:
    nowhere = settings.database.model_copy(update={"url": "postgresql+asyncpg://hunter2:secret@127.0.0.1:1/nothing"})
    app = web_app(settings.model_copy(update={"database": nowhere}), jobs=JOBS)
    async with connect(app) as http:
        found = await http.get("/readyz")
        page = await http.get("/metrics")
    await app.close()
    assert found.status_code == 503
    assert found.json()["checks"] == {"postgresql": "not available", "redis": "ok", "ledger": "unknown"}
    values = parse(page.text)
    assert values["longhaul_server_up", "postgresql"] == 0
    assert ("longhaul_outbox_rows",) not in values
    assert not [word for word in ("hunter2", "secret", "127.0.0.1") if word in found.text + page.text]
