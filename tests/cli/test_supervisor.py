"""`worker run --processes N`: processes are started, restarted and drained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

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


def supervise(started: list[subprocess.Popen[str]], settings: Settings, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "DATABASE_URL": settings.database.url,
        "REDIS_URL": settings.redis.url,
        "LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]',
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run", "--processes", "2", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


async def workers(redis: Redis, count: int) -> dict[bytes, bytes]:
    found = await redis.hgetall("worker:workers")
    return found if len(found) == count else {}


async def test_two_processes_run_are_restarted_and_drain_together(
    started: list[subprocess.Popen[str]], settings: Settings, redis: Redis, client: Client
) -> None:
    import json

    process = supervise(started, settings, "--name", "pair")
    first = await until(lambda: workers(redis, 2))
    assert set(first) == {b"pair-1", b"pair-2"}
    pids = {name: json.loads(raw)["pid"] for name, raw in first.items()}
    os.kill(pids[b"pair-1"], signal.SIGKILL)

    async def replaced() -> bool:
        now = await redis.hget("worker:workers", "pair-1")
        return now is not None and json.loads(now)["pid"] != pids[b"pair-1"]

    await until(replaced)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "process 1: ended with -9" in log
    assert await redis.hgetall("worker:workers") == {}


@pytest.mark.long
def test_what_a_restart_does_not_cure_ends_all(started: list[subprocess.Popen[str]], settings: Settings) -> None:
    process = supervise(started, settings.model_copy(), "--queue", "q")
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
