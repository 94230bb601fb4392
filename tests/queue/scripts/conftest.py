"""Runs scripts with a fixed clock, and reads their effects in Redis."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from worker.queue.scripts import script
from worker.queue.store import QueueStore
from worker.runtime.limiter import Limiter

#: The time in ms at which scripts run here.
NOW = 1_800_000_000_123
QUEUE = "arq:queue"
_TIME = "redis.call('TIME')"


def at_standing_clock(name: str, now: int = NOW) -> str:
    """Return a script for which it is always `now`, so that due times are exact; it has to ask (clock.lua)."""
    text = script(name)
    assert _TIME in text, f"{name}.lua does not go by the server's clock"
    return text.replace(_TIME, f"{{'{now // 1000}', '{now % 1000 * 1000 + 999}'}}")


class StandingStore(QueueStore):
    """A store whose scripts run at `NOW`: for those with many arguments."""

    def __init__(self, redis: Redis, owner: str = "north") -> None:
        super().__init__(redis, owner, lease_seconds=60)
        self.claims.script = redis.register_script(at_standing_clock("ack_and_claim"))
        for name in self._scripts:
            if _TIME in script(name):
                self._scripts[name] = redis.register_script(at_standing_clock(name))


class StandingLimiter(Limiter):
    """The limits of jobs at some time."""

    def __init__(self, redis: Redis, now: int = NOW) -> None:
        super().__init__(redis)
        self._acquire = redis.register_script(at_standing_clock("acquire", now))
        self._release = redis.register_script(at_standing_clock("release", now))


class Scripts:
    """The scripts, and their effects in Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = StandingStore(redis)
        self.limiter = StandingLimiter(redis)

    async def run(self, name: str, keys: list[str], *arguments: Any) -> Any:
        """Run a script that reads the clock."""
        return await self.redis.eval(at_standing_clock(name), len(keys), *keys, *arguments)

    async def due(self, run_id: str, queue: str = QUEUE) -> float | None:
        """Return when a job is due."""
        return await self.redis.zscore(queue, run_id)

    async def everything(self) -> dict[bytes, Any]:
        """Return the whole content of Redis, to check that it is unchanged."""
        found: dict[bytes, Any] = {}
        for name in sorted(await self.redis.keys("*")):
            found[name] = await self.redis.dump(name), await self.redis.pttl(name) > 0
        return found


@pytest.fixture
def scripts(redis: Redis) -> Scripts:
    """On an empty Redis."""
    return Scripts(redis)
