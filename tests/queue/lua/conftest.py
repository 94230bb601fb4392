"""Scripts at a standing clock, and what they leave in Redis."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from worker.queue.scripts import script

#: The time in ms at which scripts run here.
NOW = 1_800_000_000_123
QUEUE = "arq:queue"
_TIME = "redis.call('TIME')"
_STANDING = f"{{'{NOW // 1000}', '{NOW % 1000 * 1000 + 999}'}}"


def at_standing_clock(name: str) -> str:
    """Return a script for which it is always `NOW`, so that due times are exact; it has to ask the server."""
    text = script(name)
    assert _TIME in text, f"{name}.lua does not go by the server's clock"
    return text.replace(_TIME, _STANDING)


class Scripts:
    """The scripts, and a look at what they did."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def run(self, name: str, keys: list[str], *arguments: Any) -> Any:
        """Run a script that goes by the clock."""
        return await self.redis.eval(at_standing_clock(name), len(keys), *keys, *arguments)

    async def run_as_it_is(self, name: str, keys: list[str], *arguments: Any) -> Any:
        """Run a script that needs no clock."""
        return await self.redis.eval(script(name), len(keys), *keys, *arguments)

    async def due(self, run_id: str, queue: str = QUEUE) -> float | None:
        """Return when a job is due."""
        return await self.redis.zscore(queue, run_id)

    async def everything(self) -> dict[bytes, Any]:
        """Return all that is in Redis: to see that nothing has changed."""
        found: dict[bytes, Any] = {}
        for name in sorted(await self.redis.keys("*")):
            found[name] = await self.redis.dump(name), await self.redis.pttl(name) > 0
        return found


@pytest.fixture
def scripts(redis: Redis) -> Scripts:
    """On an empty Redis."""
    return Scripts(redis)
