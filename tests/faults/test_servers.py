"""PostgreSQL and Valkey crash, restart and lose data during a walk; the run ends, and each row is processed once."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets, ledger_row
from tests.faults.jobs import touch_by_chunks, touch_by_stream
from tests.support.waiting import until
from worker import Client, Run
from worker.db.engine import Database
from worker.embedded import Services
from worker.embedded.directories import make_home
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.valkey import EmbeddedValkey

ROWS = 3000


@pytest.fixture(scope="module")
def servers() -> Iterator[Services]:
    """Servers of our own, whatever the environment names: they are stopped here."""
    home = make_home()
    postgres, valkey = EmbeddedPostgres(home), EmbeddedValkey(home)
    postgres.start()
    valkey.start()
    yield Services(postgres.url, valkey.url, postgres, valkey)
    postgres.stop()
    valkey.stop()
    shutil.rmtree(home, ignore_errors=True)


Begin = Callable[..., Awaitable[Run[int]]]


@pytest.fixture
def begin(fleet: Fleet, client: Client, database: Database, redis: Redis) -> Begin:
    """Start two workers and a walk; return when it is under way."""

    async def begin_walk(job: object = touch_by_chunks) -> Run[int]:
        await fill_targets(database, ROWS)
        fleet.start()
        fleet.start()
        run: Run[int] = await client.enqueue(job, size=25)  # type: ignore[call-overload]
        await until(lambda: committed(database, 100))
        return run

    return begin_walk


async def committed(database: Database, rows: int) -> bool:
    """Return whether a number of rows were touched."""
    async with database.session() as session:
        return int(await session.scalar(text("SELECT count(*) FROM audit")) or 0) >= rows


@pytest.mark.parametrize("job", [touch_by_chunks, touch_by_stream], ids=lambda job: job.name)
async def test_cut_connections(begin: Begin, database: Database, job: object) -> None:
    run = await begin(job)
    for cut in range(1, 6):
        await until(lambda cut=cut: committed(database, cut * 250))  # type: ignore[misc]
        async with database.session() as session:
            await session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name LIKE 'longhaul:w%' AND pid <> pg_backend_pid()"
                )
            )
    assert await run.result(timeout=120) == ROWS
    assert await effects(database) == {1: ROWS}


async def test_postgresql_crashes_and_comes_back(begin: Begin, servers: Services, database: Database) -> None:
    run = await begin()
    assert servers.postgres is not None
    servers.postgres.stop(immediate=True)
    servers.postgres.start()
    await database.engine.dispose()
    assert await run.result(timeout=120) == ROWS
    assert await effects(database) == {1: ROWS}
    assert (await ledger_row(database, run.id)).state == "succeeded"


async def test_valkey_restarts_and_has_forgotten_everything(
    begin: Begin, servers: Services, database: Database
) -> None:
    run = await begin()
    assert servers.valkey is not None
    servers.valkey.stop(immediate=True)
    servers.valkey.start()
    assert await ended(run) == ROWS
    assert await effects(database) == {1: ROWS}


async def test_valkey_is_flushed(begin: Begin, redis: Redis, database: Database) -> None:
    run = await begin()
    await redis.flushall()
    assert await ended(run) == ROWS
    assert await effects(database) == {1: ROWS}


async def test_valkey_is_flushed_and_the_worker_dies(
    begin: Begin, fleet: Fleet, redis: Redis, database: Database
) -> None:
    run = await begin()
    holder = await fleet.holder(run.id)
    fleet.kill(holder)
    await redis.flushall()
    assert await ended(run) == ROWS  # the other one finds it in the ledger
    assert await effects(database) == {1: ROWS}
    assert (await ledger_row(database, run.id)).takeovers == 1


async def ended(run: Run[int]) -> int:
    """Return the result, through a Redis that may be down or may have lost the run."""

    async def look() -> int:
        try:
            return await run.result(timeout=120) if await run.status() == "succeeded" else 0
        except (RedisError, OSError, Exception):
            return 0

    return await until(look)
