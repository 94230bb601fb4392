"""`python -m benchmarks.load RATE ROWS SEED`: simulates an application during a walk, and prints latencies as JSON.

It is an open loop: due times are drawn in advance (exponential gaps, as in pgbench --rate, the same for the same seed),
independent of the end of earlier transactions. A latency counts from the due time, so it includes waits for a
connection or for a stalled server, as users experience it.

Each transaction is similar to pgbench's, on the walked table: it reads one row by key, updates another by key, and
inserts one into a history. The process prints `ready` when it is warm, runs until it reads a line, and prints JSON at
the end: for each transaction, its due time, by the clock that all processes of a machine share, and its milliseconds.
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
        rate: transactions a second.
        rows: rows of the table; keys are uniform from 1 to this number.
        seed: seed of due times and keys.
    """

    def __init__(self, rate: float, rows: int, seed: int) -> None:
        self._rate = rate
        self._rows = rows
        self._chance = random.Random(seed)
        self._due: asyncio.Queue[tuple[float, int, int]] = asyncio.Queue()
        self._ended: list[tuple[float, float]] = []
        self._until = float("inf")

    def schedule(self, loop: asyncio.AbstractEventLoop, began: float) -> None:
        """Start transactions at their due times, from a thread, because timers of an event loop have a resolution of 1
        ms."""
        due = began
        while due < self._until:
            time.sleep(max(0.0, due - time.monotonic()))
            what = (due, self._chance.randint(1, self._rows), self._chance.randint(1, self._rows))
            loop.call_soon_threadsafe(self._due.put_nowait, what)
            due += self._chance.expovariate(self._rate)

    async def serve(self, connection: asyncpg.Connection[Any]) -> None:
        """Execute due transactions, on one connection."""
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
        """Warm up, and run until a line is read. Return the due time and the milliseconds of each transaction."""
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
