"""`python -m benchmarks.capacity` (`make bench-capacity`): what a run costs in memory, on disk and in connections.

Measured are the memory of Redis for a run that waits and for one that has ended, the bytes of the ledger for a walk
that has ended and for a row of the outbox, and the memory and the connections to Redis of an idle worker. QUICK=1 uses
fewer runs. At the end, the table of docs/how-to/plan-capacity.md is written again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis
from sqlalchemy import select, text

from benchmarks.pages import write_pages
from benchmarks.report import Report, Row, quick, refuse_arguments
from benchmarks.soak import rss_mb, worker
from benchmarks.tables import Bench, Reader, prepare
from worker import Client, JobContext, Settings, job, load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.queue import keys
from worker.testing.runner import JobRunner
from worker.types import Database

_NAME = "measured"
_ARGUMENTS = {"user_id": 123_456, "kind": "welcome"}
_TABLES = "pg_total_relation_size('worker.run') + pg_total_relation_size('worker.step')"


@job
async def greet(ctx: JobContext, user_id: int, kind: str) -> int:
    """A small job without a loop."""
    return user_id


@job
async def walk(ctx: JobContext, user_id: int, kind: str) -> int:
    """A walk of one batch."""
    async for _ in ctx.chunks(select(Reader.id).where(Reader.id <= 10), size=10, lock=False):
        pass
    return ctx.rows_done


class Capacity:
    """The measurements.

    Args:
        settings: settings of both servers.
        redis: a connection.
        database: the database.
    """

    def __init__(self, settings: Settings, redis: Redis, database: Database) -> None:
        self._settings = settings
        self._redis = redis
        self._database = database

    async def measure(self, runs: int, walks: int) -> list[Row]:
        """Return all rows.

        Args:
            runs: number of small runs.
            walks: number of walks.
        """
        rows = []
        await self._redis.flushall()
        async with Client(self._settings) as client:
            empty = await self._redis_bytes()
            await self._enqueue(client, greet.name, runs)
            waiting = await self._redis_bytes()
            rows.append(Row("memory of Redis, a run that waits", "bytes", (waiting - empty) / runs))
            others = len(await self._redis.client_list())
            options = {"packages": '["benchmarks.capacity"]', "name": _NAME, "result_ttl_seconds": 3600}
            with tempfile.TemporaryFile("w+") as log, worker(self._environment(), log, **options) as process:
                await _until(lambda: self._ended(greet.name, runs))
                await asyncio.sleep(2)  # the last entries of the mirror
                ended = await self._redis_bytes()
                rows.append(
                    Row("memory of Redis, a run that has ended, with its result", "bytes", (ended - empty) / runs)
                )
                before = await self._scalar(f"SELECT {_TABLES}")
                await self._enqueue(client, walk.name, walks)
                await _until(lambda: self._ended(walk.name, walks))
                after = await self._scalar(f"SELECT {_TABLES}")
                rows.append(Row("ledger, a walk that has ended", "bytes", (after - before) / walks))
                rows += await self._idle_worker(process.pid, others)
        return [*rows, await self._outbox(runs)]

    async def _idle_worker(self, pid: int, others: int) -> list[Row]:
        """Return the memory and the connections to Redis of the worker, which runs nothing now.

        Args:
            pid: its process.
            others: number of connections to Redis that are not the worker's.
        """
        clients = len(await self._redis.client_list()) - others
        return [
            Row("memory of a worker that has run them", "MB", rss_mb(pid)),
            Row("connections of an idle worker to Redis", "", float(clients)),
        ]

    async def _outbox(self, rows: int) -> Row:
        """Return the bytes of a row of the outbox that waits."""
        await self._scalar(
            "WITH filled AS (INSERT INTO worker.outbox (run_id, job, payload) "
            "SELECT md5(n::text), 'greet', repeat('x', 120) "
            f"FROM generate_series(1, {rows}) AS n RETURNING 1) SELECT count(*) FROM filled"
        )
        size = await self._scalar("SELECT pg_total_relation_size('worker.outbox')")
        return Row("outbox, a row that waits", "bytes", size / rows)

    async def _enqueue(self, client: Client, name: str, count: int) -> None:
        for first in range(0, count, 1_000):
            await client.enqueue_many(name, [_ARGUMENTS] * min(1_000, count - first))

    async def _ended(self, name: str, count: int) -> bool:
        found = await self._redis.hget(keys.JOBS, f"{name}:succeeded")
        return int(found or 0) >= count

    async def _redis_bytes(self) -> int:
        return int((await self._redis.info("memory"))["used_memory"])

    async def _scalar(self, statement: str) -> float:
        async with self._database.transaction() as session:
            return float(await session.scalar(text(statement)) or 0)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"DATABASE_URL": self._settings.database.url, "REDIS_URL": self._settings.redis.url}


async def _until(look: Callable[[], Awaitable[object]]) -> None:
    deadline = time.monotonic() + 600
    while not await look():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker has not run all jobs in 600 s")
        await asyncio.sleep(0.1)


async def run(settings: Settings, report: Report, runs: int, walks: int) -> int:
    """Measure on given servers. Return the exit code."""
    database, redis = Database(settings, "capacity"), Redis.from_url(settings.redis.url)
    try:
        await migrate(database)
        await prepare(Bench(database, JobRunner(database, settings), 1_000))
        report.add(await Capacity(settings, redis, database).measure(runs, walks))
        version = str((await redis.info("server")).get("valkey_version"))
        return report.finish({"valkey": version}, keep=not quick())
    finally:
        await redis.aclose()
        await database.close()


def main() -> int:
    """Start the servers, and measure. Return the exit code."""
    refuse_arguments(__doc__)
    runs, walks = (10_000, 500) if quick() else (100_000, 5_000)
    with services(environment={}) as running:
        settings = load_settings(environment={"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url})
        code = asyncio.run(run(settings, Report("capacity", f"{runs:,} small runs, {walks:,} walks"), runs, walks))
    if not quick():
        write_pages()
    return code


if __name__ == "__main__":
    sys.exit(main())
