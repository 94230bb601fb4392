"""`python -m tests.runtime.skewed_clock NAME SKEW`: runs a worker whose cron reads a wrong clock that the test moves.

The clock is a string in Redis, in seconds since 1970; it is in the past, so that enqueued jobs are due at once, and
have run and expired before the clocks of other workers reach their due times. `SKEW` is in seconds; `jumps` is a clock
that is up to two seconds fast or slow, by another amount at each read.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from worker import JobContext, job, load_settings
from worker.launch import main as run_worker
from worker.runtime.scheduler import Scheduler

CLOCK = "test:clock"
#: What each worker's last look at its cron lines has seen: the clock, by its name.
LOOKED = "test:looked"
#: The runs that have begun: id and number of the try.
RUNS = "test:runs"


@job(cron="* * * * *", result_ttl=0)
async def each_minute(ctx: JobContext) -> None:
    """Record the run."""
    await ctx.redis.rpush(RUNS, f"{ctx.run_id} {ctx.attempt}")


def skewed(text: str) -> Callable[[], float]:
    """Return a function for the error of a clock, in seconds."""
    if text == "jumps":
        chance = random.Random(7)
        return lambda: chance.uniform(-2.0, 2.0)
    return lambda: float(text)


def shift_the_clock(name: str, error: Callable[[], float]) -> None:
    """Make the cron of this process read the test's clock."""
    start, look = Scheduler.start, Scheduler.look

    async def read(cron: Scheduler) -> tuple[bytes, datetime]:
        while (raw := await cron._store.redis.get(CLOCK)) is None:
            await asyncio.sleep(0.01)
        return raw, datetime.fromtimestamp(float(raw), UTC) + timedelta(seconds=error())

    async def started(self: Scheduler, now: datetime | None = None) -> None:
        _, moment = await read(self)
        await start(self, moment)

    async def looked(self: Scheduler, now: datetime | None = None) -> list[str]:
        raw, moment = await read(self)
        fired = await look(self, moment)
        await self._store.redis.hset(LOOKED, name, raw)
        return fired

    Scheduler.start, Scheduler.look = started, looked  # type: ignore[method-assign]


def main(name: str, skew: str) -> None:
    """Work until SIGTERM."""
    shift_the_clock(name, skewed(skew))
    settings = load_settings(
        overrides={
            "worker": {
                "name": name,
                "packages": ["tests.runtime.skewed_clock"],
                "lease_seconds": 1,
                "result_ttl_seconds": 0,
            },
            "database": {"pool_size": 2, "max_overflow": 2},
        }
    )
    run_worker(settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
