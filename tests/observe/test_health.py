"""The probes of a worker: what makes it unready, and what makes it unhealthy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url, text

from tests.support.proxy import Proxy, proxied
from tests.support.scrapes import parse, probe, scrape, served_at, with_metrics
from tests.support.waiting import until
from worker import Client, JobContext, Settings, job
from worker.db.migrate import known_revisions
from worker.errors import SettingsError
from worker.launch import running
from worker.runtime.worker import Worker
from worker.types import Database


@job
async def ignores_the_drain(ctx: JobContext) -> None:
    """Keep a draining worker busy until it is cancelled."""
    await asyncio.Event().wait()


@dataclass
class Scene:
    """A worker with metrics, behind a proxy for each server."""

    worker: Worker
    url: str
    redis: Proxy
    postgresql: Proxy

    async def until_probe(self, path: str, status: int, **checks: str) -> None:
        """Wait until a probe answers so; a check is compared by its beginning."""

        async def answers() -> bool:
            found, shown = await probe(self.url, path)
            return found == status and all(shown[name].startswith(text) for name, text in checks.items())

        await until(answers, 60)


@pytest.fixture
async def scene(
    fast: Settings,
    database: Database,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Scene]:
    """A scene with short limits."""
    monkeypatch.setattr("worker.observe.metrics.servers._READ_SECONDS", 0.5)
    caplog.set_level(logging.INFO, logger="longhaul.metrics")
    here, there = make_url(fast.database.url), urlsplit(fast.redis.url)
    assert here.port is not None
    assert there.port is not None
    async with proxied(here.port) as postgresql, proxied(there.port) as redis:
        settings = with_metrics(fast, answer_seconds=0.3)
        changes = {
            "database": {
                "url": here.set(port=postgresql.port).render_as_string(hide_password=False),
                "answer_check_seconds": 0.5,
                "connect_timeout_seconds": 0.5,
            },
            "redis": {
                "url": there._replace(netloc=f"127.0.0.1:{redis.port}").geturl(),
                "connect_timeout_seconds": 0.3,
                "command_timeout_seconds": 0.5,
            },
            "worker": {"lease_seconds": 0.9, "drain_timeout_seconds": 30.0},
        }
        settings = settings.model_copy(
            update={name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
        )
        async with running(settings, jobs=[ignores_the_drain]) as worker:
            url = await served_at(lambda: caplog.text)
            yield Scene(worker, url, redis, postgresql)


async def test_a_worker_is_not_ready_while_a_server_is_away_and_lives_on(scene: Scene, database: Database) -> None:
    await scene.until_probe("readyz", 200, worker="ok", postgresql="ok", redis="ok", ledger="ok")
    scene.redis.swallow(new=True)
    await scene.until_probe("readyz", 503, redis="no answer within 0.3 s", postgresql="ok")
    assert await probe(scene.url, "healthz") == (200, {"leases": "ok"})
    scene.redis.restore()
    scene.redis.reset()
    await scene.until_probe("readyz", 200)
    scene.postgresql.swallow(new=True)
    await scene.until_probe("readyz", 503, postgresql="no answer within 0.3 s", redis="ok", ledger="unknown")
    assert (await probe(scene.url, "healthz"))[0] == 200

    async def is_shown() -> bool:
        return parse(await scrape(scene.url)).get(("longhaul_server_up", "postgresql")) == 0

    await until(is_shown, 60)
    scene.postgresql.restore()
    scene.postgresql.reset()
    await scene.until_probe("readyz", 200)
    change = text("UPDATE worker.schema_version SET version_num = :revision")
    async with database.transaction() as session:
        await session.execute(change, {"revision": "0001"})
    try:
        await scene.until_probe("readyz", 503, ledger="not migrated", postgresql="ok")
    finally:
        async with database.transaction() as session:
            await session.execute(change, {"revision": known_revisions()[0]})


async def test_a_worker_whose_leases_are_not_renewed_is_unhealthy_and_one_that_drains_is_not(
    scene: Scene, client: Client
) -> None:
    await scene.until_probe("readyz", 200)
    with scene.worker._leases._lock:  # no job runs, so only the thread of the leases waits for it
        await scene.until_probe("healthz", 503, leases="leases were not renewed for")
    await scene.until_probe("healthz", 200)
    await client.enqueue(ignores_the_drain)

    async def is_running() -> bool:
        return bool(scene.worker.tasks)

    await until(is_running)
    scene.worker.drain(why="test")
    await scene.until_probe("readyz", 503, worker="draining", redis="ok", postgresql="ok")
    assert await probe(scene.url, "healthz") == (200, {"leases": "ok"})
    assert parse(await scrape(scene.url))["longhaul_draining",] == 1
    scene.worker.drain(why="test")


async def exchange(url: str, request: bytes) -> bytes:
    """Send bytes, and return the answer up to the end of the connection."""
    port = urlsplit(url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionError:  # the answer may be lost where the server has closed before it has read all
        return b""
    finally:
        writer.close()


async def test_hostile_requests_are_refused_and_cost_little(scene: Scene) -> None:
    assert (await exchange(scene.url, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    head = await exchange(scene.url, b"HEAD /healthz HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    for request, status in [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/../x HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example:9464\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nhost : [\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: [\r\n\r\n", 403),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", 400),
    ]:
        assert (await exchange(scene.url, request)).startswith(f"HTTP/1.1 {status} ".encode()), request
    assert (await exchange(scene.url, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"))[:12] in (b"HTTP/1.1 431", b"")
    # Connections that send nothing do not add up: beyond a limit they are closed at once.
    silent = [await asyncio.open_connection("127.0.0.1", urlsplit(scene.url).port) for _ in range(70)]
    ended, _ = await asyncio.wait(
        [asyncio.create_task(reader.read()) for reader, _ in silent], return_when=asyncio.FIRST_COMPLETED
    )
    assert ended
    for _, writer in silent:
        writer.close()
    await scene.until_probe("healthz", 200)


async def test_a_port_in_use_is_an_error_of_the_settings(scene: Scene, fast: Settings) -> None:
    taken = with_metrics(fast, port=urlsplit(scene.url).port)
    with pytest.raises(SettingsError, match=r"metrics\.port = \d+: cannot listen there"):
        async with running(taken, jobs=[ignores_the_drain]):
            pass
