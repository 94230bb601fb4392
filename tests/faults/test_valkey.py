"""Valkey is down, loses data, refuses commands or is slow: the worker logs it once, keeps its jobs, and continues."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import select

from tests.faults import gated as jobs
from tests.faults.gated import begun, cancelled, complaints, ends_told, gated, over, run_one, start, stop_renewing, told
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.proxy import proxied
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.errors import ServerUnavailable

#: Seconds that a server is away: longer than leases live.
AWAY_SECONDS = float(os.environ.get("AWAY_SECONDS", "2"))
#: Connections that are tried in a second of it, by all that speak with Redis.
TRIED_A_SECOND = 20


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for servers of one test."""
    made = make_home()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def valkey(home: Path) -> Iterator[EmbeddedValkey]:
    """A server of this test, whose data outlive it."""
    server = EmbeddedValkey(home, settings={"appendonly": "yes", "appendfsync": "always"})
    server.start()
    yield server
    server.stop(immediate=True)


@pytest_asyncio.fixture
async def here(
    valkey: EmbeddedValkey, fast: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Settings]:
    """Settings with that server."""
    jobs.forget()
    caplog.set_level(logging.INFO, "longhaul")
    yield at(fast, valkey.port)


@pytest_asyncio.fixture
async def admin(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A connection to it."""
    async with Redis.from_url(valkey.url) as connection:
        yield connection


def at(settings: Settings, port: int) -> Settings:
    """Return settings with the server of a port."""
    redis = settings.redis.model_copy(update={"url": f"redis://127.0.0.1:{port}/0"})
    return settings.model_copy(update={"redis": redis})


async def passed(seconds: float) -> None:
    """Wait for the duration of a fault."""
    await asyncio.sleep(seconds)


async def test_a_server_that_is_down_is_waited_for_and_running_jobs_stay_where_they_are(
    valkey: EmbeddedValkey, here: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxied(valkey.port) as proxy:
        seen = at(here, proxy.port)
        async with (
            working(with_worker(seen, name="one"), gated) as one,
            working(with_worker(seen, name="other"), gated),
            Client(seen) as client,
            Redis.from_url(seen.redis.url) as redis,
        ):
            runs = [await start(client, "goes-on"), await start(client, "ends-meanwhile")]
            holders = await redis.mget(*(f"arq:in-progress:{run.id}" for run in runs))
            valkey.stop(immediate=True)
            proxy.cut()
            before = proxy.opened
            await told(caplog, ["Redis: ", "running jobs continue"])
            stop_renewing("ends-meanwhile")
            await passed(AWAY_SECONDS)
            # Two workers, with their concurrent calls at the time of the failure.
            assert proxy.opened - before < 2 * TRIED_A_SECOND * (AWAY_SECONDS + 1)
            with pytest.raises(ServerUnavailable, match="start Redis there"):
                await client.enqueue(gated, name="in-vain")
            valkey.start()
            assert await runs[1].result(timeout=120) == "ends-meanwhile"
            await until(lambda: redis.exists("arq:in-progress:goes-on"))
            assert await redis.get("arq:in-progress:goes-on") == holders[0]
            stop_renewing("goes-on")
            assert await runs[0].result(timeout=120) == "goes-on"
            await run_one(client, "afterwards")
            for run in runs:
                assert await ends_told(redis, run.id) == ["succeeded"]
            await over(caplog, 2)
            assert not one.is_draining
    assert set(begun.values()) == {1}
    assert len(complaints(caplog)) == 2  # each worker's one


@pytest.mark.long
async def test_who_comes_back_first_leaves_running_jobs_to_those_who_have_them(
    valkey: EmbeddedValkey, here: Settings, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    patient = with_worker(here, lease_seconds=3.0)
    async with (
        Client(here) as client,
        proxied(valkey.port) as one,
        proxied(valkey.port) as other,
        working(at(with_worker(patient, name="one"), one.port), gated),
    ):
        run = await start(client, "goes-on")
        async with working(at(with_worker(patient, name="other"), other.port), gated) as first_back:

            async def works() -> bool:
                return first_back.listener.active

            await until(works)
            for proxy in (one, other):
                proxy.target = 1
                proxy.cut()

            async def lease_has_run_out() -> bool:
                return not await admin.exists("arq:in-progress:goes-on")

            await until(lease_has_run_out)
            other.target = valkey.port

            async def is_back() -> bool:
                return first_back._fetcher._claims_at > 0

            await until(is_back)
            one.target = valkey.port
            await until(lambda: admin.exists("arq:in-progress:goes-on"))
            stop_renewing("goes-on")
            assert await run.result(timeout=120) == "goes-on"
            await run_one(client, "afterwards")
    assert begun["goes-on"] == 1
    assert not [line for line in complaints(caplog) if "taken over" in line or "another worker" in line]


@job
async def fails_once(ctx: JobContext) -> int:
    """Enter the ledger, and wait for another attempt."""
    async for batch in ctx.chunks(select(Author), size=4):
        for author in batch:
            author.seen += 1
        begun["fails_once"] += 1
        if begun["fails_once"] == 2:
            raise RuntimeError("once")
    return ctx.rows_done


async def test_a_server_that_comes_back_empty_has_what_runs_and_what_the_ledger_has(
    valkey: EmbeddedValkey, here: Settings, home: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await fill_authors(database, 12)
    patient = with_worker(here, backoff_base_seconds=60.0, backoff_max_seconds=60.0)
    async with working(patient, gated, fails_once), Client(here) as client:
        running = await start(client, "running")
        waiting = await client.enqueue(gated.options(delay=600), name="waiting")
        durable = await client.enqueue(fails_once)

        async def waits() -> bool:
            return await durable.status() == "deferred"

        await until(waits)
        valkey.stop(immediate=True)
        for file in (home / "valkey").glob("appendonlydir/*"):
            file.unlink()
        valkey.start()
        await told(caplog, ["job restored", "running"])
        assert await until(lambda: result_of(client, durable.id), 15) == 12
        assert await waiting.status() == "unknown"
        stop_renewing("running")
        assert await running.result(timeout=120) == "running"
        async with Redis.from_url(here.redis.url) as redis:
            assert await ends_told(redis, "running") == ["succeeded"]
        await run_one(client, "afterwards")
        await over(caplog)
    assert begun["running"] == 1
    assert len([line for line in complaints(caplog) if line.startswith("Redis: ")]) == 1
    async with database.session() as session:
        assert set(await session.scalars(select(Author.seen))) == {1}


async def result_of(client: Client, run_id: str) -> object:
    """Return a result, through a Redis that may not have the run yet."""
    run = client.run(run_id)
    return await run.result(timeout=120) if await run.status() == "succeeded" else None


@pytest.mark.parametrize("how", ["cut", "demoted"])
async def test_after_a_failover_with_lost_writes_what_runs_goes_on(
    valkey: EmbeddedValkey, here: Settings, home: Path, admin: Redis, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    await admin.config_set("repl-diskless-sync-delay", 0)
    replica = {"replicaof": f"127.0.0.1 {valkey.port}", "repl-diskless-sync-delay": "0"}
    second = EmbeddedValkey(home, settings=replica, name="second")
    second.start()
    try:
        async with (
            proxied(valkey.port) as proxy,
            Redis.from_url(second.url) as replica,
            working(at(here, proxy.port), gated),
            Client(at(here, proxy.port)) as client,
        ):
            known = await start(client, "known-there")
            await until(lambda: replica.exists("arq:in-progress:known-there"))
            await replica.replicaof("NO", "ONE")  # it does not get later writes
            lost = await start(client, "lost-there")
            waiting = await client.enqueue(gated.options(delay=600), name="waiting")

            async def lease_has_run_out_there() -> bool:
                return not await replica.exists("arq:in-progress:known-there")

            await until(lease_has_run_out_there)
            proxy.target = second.port
            if how == "cut":
                proxy.cut()
            else:  # connections stay open, to a server that takes no writes any more
                await admin.replicaof("127.0.0.1", str(second.port))
            await told(caplog, ["job restored", "lost-there"])
            await until(lambda: replica.exists("arq:in-progress:known-there"))
            for run in (known, lost):
                stop_renewing(run.id)
                assert await run.result(timeout=120) == run.id
                assert await ends_told(replica, run.id) == ["succeeded"]

            async def is_unknown() -> bool:  # once the one that was demoted has what the other has
                return await waiting.status() == "unknown"

            await until(is_unknown)
            if how == "demoted":  # by a connection that has only read since; the next one leads to the other server
                with pytest.raises(ServerUnavailable, match="READONLY"):
                    await client.enqueue(gated.options(id="in-vain"), name="in-vain")
            await run_one(client, "afterwards")
    finally:
        second.stop(immediate=True)
    assert set(begun.values()) == {1}
    assert len([line for line in complaints(caplog) if line.startswith("Redis: ")]) <= 1


@pytest.mark.parametrize(
    ("refuse", "allow", "code"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS"),
    ],
    ids=["read-only", "too few replicas"],
)
async def test_a_server_that_takes_no_writes_is_waited_for(
    here: Settings, admin: Redis, caplog: pytest.LogCaptureFixture, refuse: str, allow: str, code: str
) -> None:
    async with working(here, gated), Client(here) as client:
        runs = [await start(client, "goes-on"), await start(client, "ends-meanwhile")]
        await admin.execute_command(*refuse.split())
        with pytest.raises(ServerUnavailable, match=code):
            await client.enqueue(gated.options(id="in-vain"), name="in-vain")
        stop_renewing("ends-meanwhile")
        await told(caplog, ["Redis: "])
        await passed(AWAY_SECONDS)
        assert await runs[0].status() in ("running", "waiting")
        await admin.execute_command(*allow.split())
        assert await runs[1].result(timeout=120) == "ends-meanwhile"
        stop_renewing("goes-on")
        assert await runs[0].result(timeout=120) == "goes-on"
        for run in runs:
            assert await ends_told(admin, run.id) == ["succeeded"]
        assert not await admin.exists("arq:job:in-vain")
        await run_one(client, "in-vain")
        await over(caplog)
    assert set(begun.values()) == {1}
    assert len(complaints(caplog)) == 1


async def test_a_full_server_takes_no_jobs_and_is_worked_off(
    here: Settings, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(here, gated), Client(here) as client:
        running = await start(client, "running")
        queued = await client.enqueue(gated.options(id="queued", delay=1.0), name="queued")
        await admin.config_set("maxmemory", "100kb")
        with pytest.raises(ServerUnavailable, match="memory is full"):
            await client.enqueue(gated.options(id="in-vain"), name="in-vain")
        with pytest.raises(ServerUnavailable, match="memory is full"):
            await client.enqueue_many(gated, [{"name": "in-vain"}] * 3)
        assert await admin.zcard("arq:queue") == 2
        await told(caplog, ["Redis: ", "maxmemory"])

        async def is_begun() -> bool:
            return begun["queued"] > 0

        await until(is_begun)
        for run in (running, queued):  # both end while it is full
            stop_renewing(run.id)
            assert await run.result(timeout=120) == run.id
        await passed(AWAY_SECONDS / 2)
        await admin.config_set("maxmemory", "0")
        for run in (running, queued):
            assert await ends_told(admin, run.id) == ["succeeded"]
        await run_one(client, "in-vain")
        await over(caplog)
    assert set(begun.values()) == {1}
    assert len(complaints(caplog)) == 1


@pytest.mark.long
async def test_a_slow_server_is_no_trouble(
    valkey: EmbeddedValkey, here: Settings, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxied(valkey.port, delay=0.2) as proxy:
        slow = with_worker(at(here, proxy.port), lease_seconds=1.5)
        async with working(slow, gated), Client(slow) as client:
            run = await start(client, "goes-on")
            first = await admin.zscore("arq:queue", run.id)

            async def was_renewed() -> bool:
                due = await admin.zscore("arq:queue", run.id)
                return bool(first and due and due > first + 1500)

            await until(was_renewed)
            stop_renewing("goes-on")
            assert await run.result(timeout=120) == "goes-on"
            await run_one(client, "afterwards")
            assert await ends_told(admin, run.id) == ["succeeded"]
    assert set(begun.values()) == {1}
    assert complaints(caplog) == []


@job(timeout=0.5)
async def has_little_time(ctx: JobContext) -> None:
    """Exceed the timeout."""
    begun["has_little_time"] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled["has_little_time"] += 1
        raise


async def test_the_clock_of_jobs_does_not_wait_for_a_server_that_hangs(
    valkey: EmbeddedValkey, here: Settings, admin: Redis
) -> None:
    await admin.execute_command("ACL", "SETUSER", "default", "-client|tracking")  # the worker polls commands
    assert valkey.pid is not None
    async with working(here, has_little_time), Client(here) as client:
        await client.enqueue(has_little_time)

        async def begins() -> bool:
            return bool(begun["has_little_time"])

        async def is_cancelled() -> bool:
            return bool(cancelled["has_little_time"])

        await until(begins)
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            await until(is_cancelled)
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
