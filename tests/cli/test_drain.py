"""`worker drain` on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from tests.support.command_line import CommandLine, error_line


async def publish(redis: Redis, name: str, *, seconds_ago: float = 0) -> None:
    """Publish a worker, as it does itself."""
    seen = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    fields = {"state": "running", "queue": "arq:queue", "jobs": [], "seen_at": seen.isoformat()}
    await redis.hset("worker:workers", name, json.dumps(fields))  # type: ignore[misc]


async def test_drain_names_a_worker_that_does_not_exist_and_those_that_run(cli: CommandLine, redis: Redis) -> None:
    unknown = await cli("drain", "norht")
    assert unknown.returncode == 1
    assert "no worker has the name norht; running: none" in error_line(unknown)
    assert await redis.exists("worker:drain", "worker:orders") == 0

    await publish(redis, "north")
    await publish(redis, "frozen", seconds_ago=3600)
    some = await cli("drain", "norht", "north", "frozen")
    assert (some.returncode, some.stdout) == (1, "draining: north, frozen\n")
    assert "no worker has the name norht; running: north" in error_line(some)
    assert await redis.smembers("worker:drain") == {b"north", b"frozen"}  # type: ignore[misc]
    [(_, recorded)] = await redis.xrange("worker:orders")
    assert json.loads(recorded[b"targets"]) == ["north", "frozen"]

    known = await cli("drain", "north")
    assert (known.returncode, known.stdout) == (0, "draining: north\n")
