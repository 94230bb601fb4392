"""Every feature through a real PgBouncer in transaction mode, with three server sessions for all clients."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets, ledger_row
from tests.faults.jobs import touch_by_chunks, touch_by_stream, touch_by_sweep
from tests.faults.test_freeze import freeze_in_a_batch
from tests.faults.test_kills import kill_and_count
from tests.support.pgbouncer import PgBouncer
from tests.support.servers import PGBOUNCER_VARIABLE
from tests.support.workers import with_worker, working
from worker import Client, Job, JobContext, Settings, job
from worker.db.engine import Database
from worker.db.migrate import migrate
from worker.db.tables import SCHEMA
from worker.embedded import Services

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
KINDS = [touch_by_chunks, touch_by_stream, touch_by_sweep]
#: They want a server without PgBouncer, a session of their own or more than three, or another database or role.
NEED_A_SESSION = [
    "tests/batch/test_bulk.py::test_insert_goes_by_arrays_where_row_level_security_forbids_copy",
    "tests/batch/test_faults.py::test_rows_that_can_be_seen_and_not_locked_are_an_error",
    "tests/batch/test_faults.py::test_stream_that_writes_to_its_table_gives_way_to_an_alter_table",
    "tests/batch/test_gather.py::test_calls_are_bounded_and_hold_no_transaction",
    "tests/batch/test_transaction.py::test_a_batch_sends_no_statement_more_than_it_needs",
    "tests/batch/test_transaction.py::test_an_error_at_the_boundary_ends_the_transaction_that_was_begun_ahead",
    "tests/batch/test_transaction.py::test_the_next_transaction_keeps_the_isolation",
    "tests/batch/test_walk.py::test_a_successor_ends_the_connection_of_a_frozen_worker",
    "tests/db/test_collations.py",
    "tests/db/test_driver.py::test_replace_pooled_replaces_connections_when_they_are_used_next",
    "tests/db/test_errors.py::test_a_terminated_backend_is_a_lost_connection_by_each_way",
    "tests/db/test_liveness.py",
    "tests/ledger/test_frozen_sessions.py::test_a_copy_ends_after_it_was_not_fed_for_the_limit",
    "tests/ledger/test_frozen_sessions.py::test_a_session_that_stopped_within_a_command_ends_after_the_limit",
    "tests/ledger/test_frozen_sessions.py::test_sessions_of_other_kinds_are_left_alone",
    "tests/ledger/test_ledger.py::test_closing_a_connection_whose_session_has_ended_raises_nothing",
    "tests/db/test_pgbouncer.py::test_a_server_of_our_own_is_told_from_pgbouncer",
]


def with_database(settings: Settings, **values: Any) -> Settings:
    """Return settings with other values in the section `database`."""
    return settings.model_copy(update={"database": settings.database.model_copy(update=values)})


@pytest.mark.parametrize("said", ["auto", True])
async def test_it_is_found_and_its_backends_change(settings: Settings, said: bool | str) -> None:
    database = Database(with_database(settings, pgbouncer=said, pool_size=1), "test")
    async with database.engine.connect() as connection, database.engine.connect() as other:
        backends = set()
        for _ in range(2):
            backends.add(await connection.scalar(text("SELECT pg_backend_pid()")))
            assert await connection.scalar(text("SHOW statement_timeout")) == "5min"
            assert await connection.scalar(text("SHOW application_name")) == "longhaul:test"
            await connection.commit()
            await other.scalar(text("SELECT 1"))  # takes the session that has just become free
    assert len(backends) == 2
    assert database.pooled
    await database.close()


def test_loops_and_bulk_operations_and_scopes(pooler: PgBouncer) -> None:
    """The suites of the packages that talk to PostgreSQL."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", "-n", "2"]
        + [f"--deselect={test}" for test in NEED_A_SESSION]
        + ["tests/batch", "tests/ledger", "tests/db"],
        cwd=ROOT,
        env=os.environ | {PGBOUNCER_VARIABLE: json.dumps(pooler.settings)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-5_000:]


@pytest.mark.parametrize("job", KINDS, ids=lambda job: job.name)
async def test_kills_leave_each_row_done_once_and_nothing_on_the_server(
    fleet: Fleet, client: Client, database: Database, pooler: PgBouncer, job: Job[..., int]
) -> None:
    size = 5 if job is touch_by_sweep else 25
    await kill_and_count(fleet, client, database, job, rows=200 * size, kills=10, size=size, pause=0.25, pace=30 * size)
    fleet.stop()
    await database.engine.dispose()
    # Another client's look at all the sessions that these have used.
    look = (
        "SELECT (SELECT count(*) FROM pg_prepared_statements) AS statements, current_setting('jit') AS jit, "
        "current_setting('statement_timeout') AS statement_timeout, "
        "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks, "
        "(SELECT count(*) FROM pg_listening_channels()) AS channels, pg_backend_pid() AS pid"
    )
    clients = [await asyncpg.connect(pooler.url, statement_cache_size=0) for _ in range(3)]
    transactions = [one.transaction() for one in clients]
    for transaction in transactions:
        await transaction.start()
    found = [dict(await one.fetchrow(look)) for one in clients]
    for transaction in transactions:
        await transaction.rollback()
    assert len({one.pop("pid") for one in found}) == 3
    clean = {"statements": 0, "jit": "on", "statement_timeout": "0", "locks": 0, "channels": 0}
    assert found == [clean] * 3
    for one in clients:
        await one.close()


async def test_a_frozen_workers_transaction_ends_by_its_timeout_and_no_strangers_does(
    fleet: Fleet, client: Client, database: Database, pooler: PgBouncer, redis: Redis
) -> None:
    await fill_targets(database, 2000)
    frozen = fleet.start(LONGHAUL_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS="2")
    run = await client.enqueue(touch_by_chunks, size=20)
    await freeze_in_a_batch(fleet, database, frozen)
    successor = fleet.start()
    stranger = await asyncpg.connect(pooler.url, statement_cache_size=0)
    done = asyncio.ensure_future(run.result(timeout=120))
    while not done.done():
        async with stranger.transaction():
            await stranger.fetchval("SELECT pg_sleep(0.01)")
    assert await done == 2000
    await stranger.close()
    assert await effects(database) == {1: 2000}
    assert "of its former owner" not in fleet.log()
    row = await ledger_row(database, run.id)
    assert (row.state, row.owner, row.takeovers, row.backend_pid) == ("succeeded", successor, 1, None)


async def test_the_command_line(database: Database, servers: Services, redis: Redis) -> None:
    async with database.connection() as connection:
        await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
    await fill_targets(database, 500)

    def worker(*words: str) -> str:
        environment = servers.environment() | {"LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]'}
        ran = subprocess.run(
            [sys.executable, "-m", "worker", *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    try:
        await asyncio.to_thread(worker, "migrate")
        await asyncio.to_thread(worker, "enqueue", "touch_by_chunks", "--id", "night")
        await asyncio.to_thread(worker, "run", "--burst")
        runs = json.loads(await asyncio.to_thread(worker, "runs", "--search", "night", "--json"))
    finally:
        await migrate(database)
    assert "succeeded" in json.dumps(runs)
    assert await effects(database) == {1: 500}


@pytest.mark.usefixtures("database")
async def test_the_outbox_is_relayed_without_listen(fast: Settings, client: Client) -> None:
    settings = with_database(with_worker(fast, outbox_poll_seconds=0.1), pgbouncer="auto")
    database = Database(settings)
    await migrate(database)
    async with working(settings, relayed):
        for _ in range(3):
            async with database.transaction() as session:
                run = await client.enqueue_in(session, relayed)
            assert await run.result(timeout=120) == "relayed"
    await database.close()


@job
async def relayed(ctx: JobContext) -> str:
    """Return."""
    return "relayed"
