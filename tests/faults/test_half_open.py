"""Half-open connections to PostgreSQL: walks go on, periodic tasks do not stop each other, SIGTERM ends the process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import make_url, text

from tests.faults.conftest import Fleet, effects, fill_targets, ledger_row
from tests.faults.jobs import outlives_its_worker, touch_by_chunks, touch_by_stream, touch_by_sweep, touch_when_let_go
from tests.support.proxy import Proxy, proxied
from tests.support.waiting import until
from worker import Client, Job
from worker.db.engine import Database
from worker.embedded import Services

ROWS = 600
#: Longest time of a recovery, on a busy machine.
BOUND_SECONDS = 60.0
#: Longest shutdown with a drain timeout of one second, and whatever hangs: see `Worker.shutdown_seconds`.
SHUTDOWN_SECONDS = 45.0


class Hole:
    """A proxy before PostgreSQL, and workers behind it."""

    def __init__(self, fleet: Fleet, proxy: Proxy, url: str) -> None:
        self.fleet = fleet
        self.proxy = proxy
        self._url = make_url(url).set(port=proxy.port).render_as_string(hide_password=False)

    def start_worker(self) -> str:
        return self.fleet.start(
            DATABASE_URL=self._url,
            LONGHAUL_DATABASE__ANSWER_CHECK_SECONDS="0.3",
            LONGHAUL_DATABASE__CONNECT_TIMEOUT_SECONDS="1",
            LONGHAUL_WORKER__DRAIN_TIMEOUT_SECONDS="1",
        )


@pytest_asyncio.fixture
async def hole(fleet: Fleet, servers: Services) -> AsyncIterator[Hole]:
    port = make_url(servers.database_url).port
    assert port is not None
    async with proxied(port) as proxy:
        yield Hole(fleet, proxy, servers.database_url)


async def touched(database: Database) -> int:
    async with database.session() as session:
        return int(await session.scalar(text("SELECT count(*) FROM audit")) or 0)


async def begin(hole: Hole, client: Client, database: Database, job: Job[..., int]) -> str:
    """Start a worker and a walk; return the run's id when the walk is under way."""
    await fill_targets(database, ROWS)
    hole.start_worker()
    run = await client.enqueue(job, size=10)

    async def is_under_way() -> bool:
        return await touched(database) >= 50

    await until(is_under_way)
    return run.id


LONG = pytest.mark.long
WALKS = [touch_by_chunks, *(pytest.param(job, marks=LONG) for job in (touch_by_stream, touch_by_sweep))]


@pytest.mark.parametrize("job", WALKS, ids=lambda job: job.name)
async def test_walk_continues_on_new_connections(
    hole: Hole, client: Client, database: Database, job: Job[..., int]
) -> None:
    run_id = await begin(hole, client, database, job)
    hole.proxy.swallow()
    assert await client.run(run_id).result(timeout=BOUND_SECONDS) == ROWS
    assert await effects(database) == {1: ROWS}


@pytest.mark.long
async def test_walk_continues_when_the_network_is_restored(
    hole: Hole, client: Client, database: Database, redis: Redis
) -> None:
    run_id = await begin(hole, client, database, touch_by_chunks)
    hole.proxy.swallow(new=True)

    async def has_noticed() -> bool:
        return "connection terminated" in hole.fleet.log()

    await until(has_noticed, BOUND_SECONDS)
    # Redis is not concerned: plain jobs run, and the health line is renewed.
    plain = await client.enqueue(outlives_its_worker.options(id="plain"))
    await redis.set("let-go:plain", 1)
    assert await plain.result(timeout=BOUND_SECONDS)
    assert await redis.exists("arq:queue:health-check")
    hole.proxy.restore()
    assert await client.run(run_id).result(timeout=BOUND_SECONDS) == ROWS
    assert await effects(database) == {1: ROWS}
    assert (await ledger_row(database, run_id)).state == "succeeded"


@pytest.mark.long
@pytest.mark.parametrize("new", [False, True], ids=["others_work", "server_is_away"])
async def test_sigterm_ends_the_process(
    hole: Hole, client: Client, database: Database, fleet: Fleet, new: bool
) -> None:
    run_id = await begin(hole, client, database, touch_by_chunks)
    [name] = fleet.processes
    hole.proxy.swallow(new=new)
    before = time.monotonic()
    fleet.kill(name, signal.SIGTERM)
    async with asyncio.timeout(SHUTDOWN_SECONDS):
        code = await fleet.ended(name)
    assert code == 0, f"after {time.monotonic() - before:.1f} s"
    hole.proxy.restore()
    hole.start_worker()
    assert await client.run(run_id).result(timeout=BOUND_SECONDS) == ROWS
    assert await effects(database) == {1: ROWS}


@pytest.mark.long
@pytest.mark.parametrize("new", [False, True], ids=["others_work", "server_is_away"])
async def test_connection_that_is_lost_while_the_body_is_idle_doubles_no_row(
    hole: Hole, client: Client, database: Database, redis: Redis, new: bool
) -> None:
    """Nothing is sent when it happens, so that only the end of the batch can notice."""
    await fill_targets(database, ROWS)
    hole.start_worker()
    run = await client.enqueue(touch_when_let_go, size=10)

    async def waits() -> int:
        return int(await redis.exists("waits"))

    await until(waits)
    hole.proxy.swallow(new=new)
    await redis.set("let-go", 1)

    async def has_noticed() -> bool:
        return "connection terminated" in hole.fleet.log()

    await until(has_noticed, BOUND_SECONDS)
    hole.proxy.restore()
    assert await run.result(timeout=BOUND_SECONDS) == ROWS
    assert await effects(database) == {1: ROWS}


async def list_server_processes(database: Database) -> list[int]:
    """Return the processes of PostgreSQL, the postmaster first."""
    async with database.session() as session:
        backend = int(await session.scalar(text("SELECT pg_backend_pid()")) or 0)
    postmaster = read_parent(backend)
    all_pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [postmaster, *(pid for pid in all_pids if read_parent(pid) == postmaster)]


def read_parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.long
async def test_walk_and_shutdown_survive_a_server_that_hangs(
    hole: Hole, client: Client, database: Database, fleet: Fleet, redis: Redis
) -> None:
    """Its processes are frozen: the kernel accepts connections, and nothing ever answers."""
    run_id = await begin(hole, client, database, touch_by_chunks)
    [name] = fleet.processes
    frozen = await list_server_processes(database)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        plain = await client.enqueue(outlives_its_worker.options(id="plain"))
        await redis.set("let-go:plain", 1)
        assert await plain.result(timeout=BOUND_SECONDS)
        fleet.kill(name, signal.SIGTERM)
        async with asyncio.timeout(SHUTDOWN_SECONDS):
            assert await fleet.ended(name) == 0
    finally:
        for pid in reversed(frozen):
            os.kill(pid, signal.SIGCONT)
    hole.start_worker()
    assert await client.run(run_id).result(timeout=BOUND_SECONDS) == ROWS
    assert await effects(database) == {1: ROWS}
