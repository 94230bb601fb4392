"""Workers as separate processes, to be killed, frozen and replaced."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.models import AUDIT_TRIGGER
from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.waiting import until
from worker.db.engine import Database
from worker.embedded import Services

FAST = {
    "LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]',
    "LONGHAUL_WORKER__LEASE_SECONDS": "0.9",
    "LONGHAUL_WORKER__POLL_INTERVAL_SECONDS": "0.05",
    "LONGHAUL_WORKER__RESCUE_INTERVAL_SECONDS": "1",
    "LONGHAUL_WORKER__BACKOFF_BASE_SECONDS": "0.2",
    "LONGHAUL_WORKER__MAX_JOBS": "2",
}


class Fleet:
    """Worker processes on the servers of the tests."""

    def __init__(self, services: Services, logs: Path, redis: Redis) -> None:
        self._services = services
        self._logs = logs
        self._redis = redis
        self._numbers = itertools.count(1)
        self.processes: dict[str, ForkedProcess] = {}

    def start(self, **environment: str) -> str:
        """Start a worker. Return its name."""
        name = f"w{next(self._numbers)}"
        with (self._logs / f"{name}.log").open("wb") as log:
            self.processes[name] = ForkServer.get().spawn(
                "worker", "run", "--name", name,
                env=self._services.environment() | FAST | environment, stdout=log.fileno(), stderr=log.fileno(),
            )  # fmt: skip
        return name

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a worker."""
        process = self.processes[name]
        os.kill(process.pid, signum)
        if signum == signal.SIGKILL:
            process.wait()
            del self.processes[name]

    async def holder(self, run_id: str) -> str:
        """Wait until a living worker owns the run. Return its name."""

        async def look() -> str | None:
            raw = await self._redis.get(f"arq:in-progress:{run_id}")
            name = raw.decode().split(":")[0] if raw else None
            return name if name in self.processes else None

        return await until(look) or ""

    async def ended(self, name: str) -> int:
        """Wait until a worker has ended. Return its exit code."""
        process = self.processes[name]

        async def look() -> bool:
            return process.poll() is not None

        await until(look)
        del self.processes[name]
        return int(process.returncode or 0)

    def log(self, name: str = "*") -> str:
        """Return the output of all workers, or of one."""
        return "\n".join(path.read_text() for path in sorted(self._logs.glob(f"{name}.log")))

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest_asyncio.fixture
async def fleet(servers: Services, redis: Redis, database: Database, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Prepare, without a worker."""
    workers = Fleet(servers, tmp_path, redis)
    yield workers
    workers.stop()
    sys.stdout.write(workers.log()[-20_000:])  # shown by pytest where the test failed


async def fill_targets(database: Database, count: int, *, partitions: int = 0) -> None:
    """Make the table to be touched, with its trigger; divided by ranges of its key, if that is asked for."""
    async with database.transaction() as session:
        if partitions:
            await _divide_targets(session, [count * number // partitions for number in range(1, partitions)])
        await session.execute(
            text("INSERT INTO target (id, touched) SELECT n, false FROM generate_series(1, :count) AS n"),
            {"count": count},
        )
        for statement in AUDIT_TRIGGER:
            await session.execute(text(statement))
        await session.execute(text("ANALYZE target"))


async def _divide_targets(session: AsyncSession, ends: list[int]) -> None:
    """Make the table again, with a partition up to each of these keys, and one for the rest."""
    await session.execute(text("DROP TABLE target CASCADE"))
    columns = "id integer PRIMARY KEY, touched boolean NOT NULL"
    await session.execute(text(f"CREATE TABLE target ({columns}) PARTITION BY RANGE (id)"))
    for number, (first, end) in enumerate(itertools.pairwise(["MINVALUE", *ends, "MAXVALUE"])):
        bounds = f"FROM ({first}) TO ({end})"
        await session.execute(text(f"CREATE TABLE target_{number} PARTITION OF target FOR VALUES {bounds}"))


async def effects(database: Database) -> dict[int, int]:
    """Return the number of rows by number of touches: after a run, {1: all of them}."""
    async with database.session() as session:
        rows = await session.execute(
            text(
                "SELECT times, count(*) AS count FROM (SELECT count(audit.target_id) AS times FROM target "
                "LEFT JOIN audit ON audit.target_id = target.id GROUP BY target.id) AS counted GROUP BY times"
            )
        )
        return {row.times: row.count for row in rows}


async def mirror(redis: Redis, run_id: str) -> dict[str, Any]:
    """Return the run's mirror."""
    return {name.decode(): value.decode() for name, value in (await redis.hgetall(f"worker:run:{run_id}")).items()}


async def ledger_row(database: Database, run_id: str) -> Any:
    """Return the run's row in the ledger."""
    async with database.session() as session:
        return (await session.execute(text("SELECT * FROM worker.run WHERE id = :id"), {"id": run_id})).one_or_none()
