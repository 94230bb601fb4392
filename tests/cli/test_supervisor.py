"""`worker run --processes N`: processes are started, restarted and drained, and one port has the metrics of all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.faults.jobs import touch_by_chunks
from tests.support.scrapes import check_by_promtool, parse, probe, scrape, served_at
from tests.support.waiting import until
from worker import Client, Settings
from worker.db.engine import Database


@pytest.fixture
def started(settings: Settings, database: Database) -> Iterator[list[subprocess.Popen[str]]]:
    """Supervisors to be ended."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def supervise(
    started: list[subprocess.Popen[str]], settings: Settings, log: Path, *options: str
) -> subprocess.Popen[str]:
    environment = os.environ | {
        "DATABASE_URL": settings.database.url,
        "REDIS_URL": settings.redis.url,
        "LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]',
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run", "--processes", "2", *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=file,
            text=True,
        )
    started.append(process)
    return process


async def workers(redis: Redis, count: int) -> dict[bytes, bytes]:
    found = await redis.hgetall("worker:workers")
    return found if len(found) == count else {}


class Counts:
    """The counters behind one port, which never go backwards.

    Args:
        url: address of the supervisor.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._last: dict[tuple[str, ...], float] = {}

    async def read(self) -> dict[tuple[str, ...], float]:
        """Return the values of a scrape."""
        found = parse(await scrape(self._url))
        for key, value in self._last.items():
            if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                assert found[key] >= value, key
        self._last = found
        return found

    async def reach(self, number: int) -> bool:
        """Return whether so many jobs have succeeded, and not more."""
        found = await self.read()
        assert found["longhaul_jobs_total", "touch_by_chunks", "succeeded"] <= number
        return found["longhaul_jobs_total", "touch_by_chunks", "succeeded"] == number

    async def are_ready(self) -> bool:
        """Return whether both processes are ready."""
        ready, _ = await probe(self._url, "readyz")
        if ready == 200:
            assert await probe(self._url, "healthz") == (200, {"leases": "ok", "processes": "ok"})
            assert (await self.read())["longhaul_slots",] == 20
            await check_by_promtool(await scrape(self._url))
        return ready == 200

    async def have_lost_one(self) -> bool:
        """Return whether one process is gone; its counts stay."""
        status, checks = await probe(self._url, "readyz")
        await self.read()
        return status == 503 and checks["processes"] == "1 of 2 run"


async def test_two_processes_run_are_restarted_and_drain_together(
    started: list[subprocess.Popen[str]], settings: Settings, redis: Redis, client: Client, tmp_path: Path
) -> None:
    import json

    file = tmp_path / "log"
    process = supervise(started, settings, file, "--name", "pair", "--metrics-port", "0")
    first = await until(lambda: workers(redis, 2))
    assert set(first) == {b"pair-1", b"pair-2"}
    pids = {name: json.loads(raw)["pid"] for name, raw in first.items()}
    url = await served_at(file.read_text)
    counts = Counts(url)
    await until(counts.are_ready)
    for run in [await client.enqueue(touch_by_chunks) for _ in range(20)]:
        await run.result(timeout=60)
    await until(lambda: counts.reach(20))
    os.kill(pids[b"pair-1"], signal.SIGKILL)
    await until(counts.have_lost_one)

    async def replaced() -> bool:
        now = await redis.hget("worker:workers", "pair-1")
        return now is not None and json.loads(now)["pid"] != pids[b"pair-1"]

    await until(replaced)
    await until(counts.are_ready)
    for run in [await client.enqueue(touch_by_chunks) for _ in range(10)]:
        await run.result(timeout=60)
    await until(lambda: counts.reach(30))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "process 1: ended with -9" in file.read_text()
    assert await redis.hgetall("worker:workers") == {}


@pytest.mark.long
def test_what_a_restart_does_not_cure_ends_all(
    started: list[subprocess.Popen[str]], settings: Settings, tmp_path: Path
) -> None:
    process = supervise(started, settings.model_copy(), tmp_path / "log", "--queue", "q")
    process.terminate()
    process.wait(30)
    wrong = subprocess.run(
        [sys.executable, "-m", "worker", "run", "--processes", "2"],
        env=os.environ
        | {
            "DATABASE_URL": settings.database.url,
            "REDIS_URL": settings.redis.url,
            "LONGHAUL_WORKER__PACKAGES": '["no.such.package"]',
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert wrong.returncode == 2
    assert "giving up" in wrong.stderr
    assert "no.such.package" in wrong.stderr
