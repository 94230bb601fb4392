"""`python -m benchmarks.outbox` (part of `make bench-queue`): the way of a run from the caller's COMMIT to the job.

The relay moves the rows of one worker alone. Latencies are measured in a worker process of its own, from before COMMIT
is sent to the first line of the job. QUICK=1 uses fewer rows.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time

from redis.asyncio import Redis
from sqlalchemy import text

from benchmarks.report import Report, Row, at_most, quick
from worker import Client, JobContext, Settings, job, load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.key_problems import KeyProblemLog
from worker.runtime.relay import Relay
from worker.runtime.wiring import connect_redis
from worker.types import Database

_STAMPS = "benchmark:stamps"
_WARM = 10
_ROWS_BAR = 20_000


@job
async def stamp_start(ctx: JobContext) -> None:
    """Note the time of its first line."""
    started_ns = time.time_ns()
    async with Redis.from_url(ctx.settings.redis.url) as redis:
        await redis.rpush(_STAMPS, started_ns)


async def measure_rate(settings: Settings, database: Database, redis: Redis, rows: int) -> float:
    """Return rows relayed a second."""
    insert = "INSERT INTO worker.outbox (run_id, job, payload) SELECT 'r' || n, 'empty', :payload FROM "
    async with database.transaction() as session:
        payload = (
            '{"t":null,"f":"empty","a":[],"k":{"user_id":123456,"kind":"welcome"},"et":1700000000000,"v":"0123abcd"}'
        )
        await session.execute(text(f"{insert} generate_series(1, :rows) AS n"), {"payload": payload, "rows": rows})
    relay = Relay(settings, redis, Ledger(database), KeyProblemLog(), "benchmark", {})
    began, relayed = time.perf_counter(), 0
    while relayed < rows:
        relayed += await relay.relay_waiting()
    taken = time.perf_counter() - began
    await relay.close()
    if await redis.zcard("arq:queue") != rows:
        raise RuntimeError("the queue does not have each row once")
    return rows / taken


async def measure_latencies(settings: Settings, database: Database, redis: Redis, count: int) -> list[float]:
    """Return the ms from before COMMIT to the first line of the job, for runs that are enqueued one after the other."""
    environment = os.environ | {
        "DATABASE_URL": settings.database.url,
        "REDIS_URL": settings.redis.url,
        "LONGHAUL_WORKER__PACKAGES": '["benchmarks.outbox"]',
        "LONGHAUL_LOG__LEVEL": "WARNING",
    }
    sent_ns: list[int] = []
    process = subprocess.Popen([sys.executable, "-m", "worker", "run"], env=environment)
    try:
        async with Client(settings) as client:
            while not await redis.hlen(keys.WORKERS):
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)  # until it is idle and listens
            for number in range(count + _WARM):
                async with database.session() as session:
                    await client.enqueue_in(session, stamp_start)
                    sent_ns.append(time.time_ns())
                    await session.commit()
                while await redis.llen(_STAMPS) <= number:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.02)
        started_ns = map(int, await redis.lrange(_STAMPS, 0, -1))
        return [(started - sent) / 1e6 for started, sent in zip(started_ns, sent_ns, strict=True)][_WARM:]
    finally:
        process.terminate()
        process.wait()


async def measure(settings: Settings, report: Report) -> None:
    """Measure all rows."""
    rows, stamps = (50_000, 100) if quick() else (200_000, 400)
    database, redis = Database(settings), connect_redis(settings)  # as a worker connects
    await migrate(database)
    rates = []
    for _ in range(1 if quick() else 3):
        await redis.flushall()
        rates.append(await measure_rate(settings, database, redis, rows))
    rate = statistics.median(rates)
    report.add([Row("rows of the outbox relayed", "rows/s", rate, {}, None, f"≥ {_ROWS_BAR:,}", rate >= _ROWS_BAR)])
    await redis.flushall()
    taken = statistics.quantiles(await measure_latencies(settings, database, redis, stamps), n=100)
    report.add([at_most("COMMIT to the job's first line, p50", "ms", taken[49], 15)])
    report.add([Row("COMMIT to the job's first line, p99", "ms", taken[98])])
    await redis.aclose()
    await database.close()


def main() -> int:
    """Run all measurements. Return the exit code."""
    with services(environment={}) as running:
        environment = {"DATABASE_URL": running.database_url, "REDIS_URL": running.redis_url}
        settings = load_settings(environment=environment)
        report = Report("outbox", "one relay; one worker")
        asyncio.run(measure(settings, report))
        return report.finish({}, keep=not quick())


if __name__ == "__main__":
    sys.exit(main())
