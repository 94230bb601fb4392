"""Streams from a replica contain everything committed before the walk, and continue by key after a restart."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator

import pytest
from sqlalchemy import select, text

from tests.batch.test_replica import add_authors, fail_once, mark, nothing_read, read_at  # noqa: F401
from tests.models import Author
from tests.support.authors import count_seen
from tests.support.replica import Replica
from tests.support.waiting import until
from worker import JobContext, Settings, job, load_settings
from worker.db.engine import Database
from worker.db.errors import is_transient, is_unavailable
from worker.embedded import Services
from worker.embedded.directories import make_home
from worker.embedded.postgres import EmbeddedPostgres
from worker.testing.runner import JobRunner

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    """A primary and its replica, of our own."""
    homes = [make_home(), make_home()]
    primary = EmbeddedPostgres(homes[0])
    primary.start()
    follower = Replica(homes[1], primary)
    follower.start()
    yield follower
    follower.stop()
    primary.stop()
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def servers(longhaul_servers: Services, replica: Replica) -> Services:
    primary = replica._primary
    return Services(primary.url, longhaul_servers.redis_url, primary, longhaul_servers.valkey)


@pytest.fixture
def settings(servers: Services, replica: Replica) -> Settings:
    urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
    return load_settings(environment=urls | {"LONGHAUL_DATABASE__REPLICA_URL": replica.url})


async def test_it_reads_there_and_writes_here(database: Database, settings: Settings) -> None:
    await add_authors(database, 1, 45)
    assert await JobRunner(database, settings)(mark) == 45
    assert read_at == [True] * 45
    assert await count_seen(database) == {1: 45}


async def test_it_waits_for_what_was_committed_before(database: Database, settings: Settings) -> None:
    assert database.replica is not None
    await add_authors(database, 1, 20)
    async with database.replica.session() as session:
        await session.execute(text("SELECT pg_wal_replay_pause()"))
    try:
        await add_authors(database, 21, 40)
        walk = asyncio.ensure_future(JobRunner(database, settings)(mark))
        await asyncio.wait({walk}, timeout=1)  # long enough for the whole walk
        assert read_at == []
    finally:
        async with database.replica.session() as session:
            await session.execute(text("SELECT pg_wal_replay_resume()"))
    assert await walk == 40
    assert await count_seen(database) == {1: 40}


async def test_a_restart_goes_on_by_key(database: Database, settings: Settings) -> None:
    await add_authors(database, 1, 60)
    runner = JobRunner(database, settings)
    fail_once.append("in the third partition")
    with pytest.raises(RuntimeError, match="in the third partition"):
        await runner.attempt(mark, "run")
    assert await count_seen(database) == {0: 40, 1: 20}
    assert await runner.attempt(mark, "run") == 60
    assert await count_seen(database) == {1: 60}


async def run_alone(database: Database, *statements: str) -> None:
    """Run statements outside of a transaction."""
    async with database.session() as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        for statement in statements:
            await session.execute(text(statement))


async def test_a_snapshot_in_the_way_of_a_vacuum_costs_a_walk_no_row(database: Database, settings: Settings) -> None:
    assert database.replica is not None
    replica = database.replica
    # Replay ends conflicting snapshots at once, and not after 30 s.
    await run_alone(replica, "ALTER SYSTEM SET max_standby_streaming_delay = 0", "SELECT pg_reload_conf()")
    await add_authors(database, 1, 60)
    runner = JobRunner(database, settings)
    vacuumed: list[int] = []

    async def conflicts() -> int:
        async with replica.session() as session:
            return int(await session.scalar(text("SELECT sum(confl_snapshot) FROM pg_stat_database_conflicts")) or 0)

    before = await conflicts()

    async def has_conflicted() -> bool:
        return await conflicts() > before

    @job
    async def mark_while_vacuumed(ctx: JobContext) -> int:
        async for partition in ctx.stream(select(Author.id, Author.seen).order_by(Author.id), size=10, replica=True):
            await partition.bulk.update(Author, [{"id": key, "seen": seen + 1} for key, seen in partition])
            if partition.number == 3 and not vacuumed:
                vacuumed.append(partition.number)
                await run_alone(database, "VACUUM author")
                await until(has_conflicted)
        return ctx.rows_done

    try:
        with pytest.raises(Exception) as ended:
            await runner.attempt(mark_while_vacuumed, "run")
        assert is_unavailable(ended.value) or is_transient(ended.value)
        assert await runner.attempt(mark_while_vacuumed, "run") == 60
    finally:
        await run_alone(replica, "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")
    assert vacuumed == [3]
    assert await count_seen(database) == {1: 60}
