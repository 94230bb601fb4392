"""Messages about changed keys, over connections that end."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.support.waiting import until_true
from worker import Settings
from worker.queue.invalidations import InvalidationListener

KEY = "worker:paused"


async def find_client(redis: Redis, flag: str) -> str:
    """Return the id of the client that has a flag: "t" reads with CLIENT TRACKING, "P" receives messages."""
    [found] = [client["id"] for client in await redis.client_list() if flag in client["flags"]]
    return str(found)


@pytest.mark.parametrize("flag", ["t", "P"], ids=["reader", "receiver"])
async def test_changes_are_received_again_after_one_connection_has_ended(
    settings: Settings, redis: Redis, flag: str
) -> None:
    changes: list[frozenset[str] | None] = []
    listener = InvalidationListener(settings)
    await listener.start(changes.append)
    try:
        for number in range(3):
            await until_true(lambda: listener.active)
            await listener.read(("SMEMBERS", KEY))
            changes.clear()
            await redis.client_kill_filter(_id=await find_client(redis, flag))
            await redis.sadd(KEY, f"run-{number}")
            await until_true(lambda: changes)
        await until_true(lambda: listener.active)
        assert await listener.read(("SCARD", KEY)) == [3]
        changes.clear()
        await redis.sadd(KEY, "run-9")
        await until_true(lambda: frozenset({KEY}) in changes)
    finally:
        await listener.stop()
