"""`python -m benchmarks.load RATE ROWS SEED`: an application at work, as the walk's neighbour; its latencies as JSON.

It is an open loop: transactions are due at moments that are drawn beforehand (exponential gaps, as pgbench --rate has
them, the same for the same seed), whether the ones before have ended or not, and a latency counts from the moment that
a transaction was due. One that waits for a connection, or for a server that stands still, is as late as a user sees it.

Each transaction is of pgbench's kind, on the table that is walked: one row read by key, another updated by key, and one
inserted into a history. The process says `ready` when it is warm, goes on until it is told a line, and ends with JSON:
of each transaction when it was due, by the clock that all processes of a machine share, and its milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from typing import Any

import asyncpg

CONNECTIONS = 8
_READ = "SELECT name, visits, score FROM bench_reader WHERE id = $1"
_UPDATE = "UPDATE bench_reader SET visits = visits + 1 WHERE id = $1"
_INSERT = "INSERT INTO bench_history (reader_id, delta, at) VALUES ($1, 1, now())"
_WARM_SECONDS = 1.0


class Load:
    """The transactions.

    Args:
        rate: how many a second.
        rows: of the table: keys are 1 to rows, each as likely.
        seed: of moments and keys.
    """

    def __init__(self, rate: float, rows: int, seed: int) -> None:
        self._rate = rate
        self._rows = rows
        self._chance = random.Random(seed)
        self._due: asyncio.Queue[tuple[float, int, int]] = asyncio.Queue()
        self._ended: list[tuple[float, float]] = []
        self._until = float("inf")

    def schedule(self, loop: asyncio.AbstractEventLoop, began: float) -> None:
        """Hand transactions out when they are due: in a thread, as timers of an event loop are a millisecond rough."""
        due = began
        while due < self._until:
            time.sleep(max(0.0, due - time.monotonic()))
            what = (due, self._chance.randint(1, self._rows), self._chance.randint(1, self._rows))
            loop.call_soon_threadsafe(self._due.put_nowait, what)
            due += self._chance.expovariate(self._rate)

    async def serve(self, connection: asyncpg.Connection[Any]) -> None:
        """Do what is due, on one connection."""
        read, write, note = [await connection.prepare(each) for each in (_READ, _UPDATE, _INSERT)]
        while True:
            due, one, other = await self._due.get()
            async with connection.transaction():
                await read.fetchrow(one)
                await write.fetchrow(other)
                await note.fetchrow(other)
            self._ended.append((due, 1000 * (time.monotonic() - due)))
            self._due.task_done()

    async def run(self) -> list[tuple[float, float]]:
        """Warm up, and go on until told. Returns when each was due, and its milliseconds."""
        loop = asyncio.get_running_loop()
        url = os.environ["DATABASE_URL"]
        connections = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
        servers = [asyncio.create_task(self.serve(each)) for each in connections]
        clock = threading.Thread(target=self.schedule, args=(loop, time.monotonic() + 0.1), daemon=True)
        clock.start()
        await asyncio.sleep(_WARM_SECONDS)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        self._until = time.monotonic()
        await asyncio.to_thread(clock.join)
        await self._due.join()
        for server in servers:
            server.cancel()
        await asyncio.gather(*servers, return_exceptions=True)
        for each in connections:
            await each.close()
        return self._ended


if __name__ == "__main__":
    import uvloop

    rate, rows, seed = sys.argv[1:]
    print(json.dumps(uvloop.run(Load(float(rate), int(rows), int(seed)).run())))
