"""A relay that dies: relays the outbox, and kills its process in the middle.

Its argument names the moment: `claimed` (no run is enqueued), `enqueued` (Redis has the runs, the rows are there) or
`deleted` (DELETE was sent, and not COMMIT).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from redis.asyncio import Redis

from worker import Job, Settings, load_settings
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue.key_problems import KeyProblemLog
from worker.runtime.relay import Relay


def make_relay(settings: Settings, redis: Redis, *jobs: Job[..., Any]) -> Relay:
    """Return a relay that is part of no worker."""
    known = {one.name: one for one in jobs}
    return Relay(settings, redis, Ledger(Database(settings, "test")), KeyProblemLog(), "test", known)


async def relay_and_die(settings: Settings, moment: str) -> None:
    """Relay what the outbox has, and kill this process at a moment."""
    relay: Any = make_relay(settings, Redis.from_url(settings.redis.url))
    enqueue, finish = relay._enqueue, relay._finish

    async def die_before_enqueueing(*arguments: Any) -> Any:
        if moment == "claimed":
            os.kill(os.getpid(), signal.SIGKILL)
        return await enqueue(*arguments)

    async def die_around_finish(*arguments: Any) -> None:
        if moment == "deleted":
            await finish(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    relay._enqueue, relay._finish = die_before_enqueueing, die_around_finish
    while True:  # the rows of a relay that has just died may still be locked
        await relay.relay_waiting()
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(relay_and_die(load_settings(), sys.argv[1]))
