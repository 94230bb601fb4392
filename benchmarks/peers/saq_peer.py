"""saq, in its own environment."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from protocol import SLEEP_SECONDS, TALLY, ready, run, speak
from saq import Queue, Worker


async def empty(ctx: dict[str, Any]) -> None:
    TALLY.add()


async def sleep(ctx: dict[str, Any]) -> None:
    TALLY.add()
    await asyncio.sleep(SLEEP_SECONDS)


async def stamp(ctx: dict[str, Any], *, sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


def work(options: argparse.Namespace) -> None:
    """Run a worker; its own handler of SIGTERM stops it."""

    async def started(ctx: dict[str, Any]) -> None:
        ready()

    async def main() -> None:
        queue = Queue.from_url(options.url)
        await Worker(queue, [empty, sleep, stamp], concurrency=options.slots, startup=started).start()
        await queue.disconnect()

    run(main())


class Sender:
    """Gather calls of `enqueue`: saq has no call for many jobs without a wait for their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._delay = options.delay
        self._queue = Queue.from_url(options.url)

    async def __aenter__(self) -> Sender:
        await self._queue.connect()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._queue.disconnect()

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        due = {"scheduled": round(time.time() + self._delay)} if self._delay else {}
        await self._queue.enqueue(job, **arguments, **due)

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        await asyncio.gather(*(self.one(job, each) for each in arguments))


if __name__ == "__main__":
    speak(work, Sender)
