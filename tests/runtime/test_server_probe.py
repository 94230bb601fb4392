"""Which errors cost an attempt: those of the job and of other servers do; an unavailable server of ours does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import make_url, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.proxy import Proxy, proxied
from tests.support.waiting import until, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.embedded.process import free_port
from worker.ledger import Ledger

#: The number of each attempt that has begun.
attempts: list[int] = []
use: dict[str, Callable[[JobContext], Awaitable[Any]]] = {}
urls: dict[str, str] = {}


@job(max_attempts=2)
async def uses_servers(ctx: JobContext) -> str:
    attempts.append(ctx.attempt)
    await use["it"](ctx)
    return "done"


@job(max_attempts=2)
async def walks(ctx: JobContext) -> int:
    attempts.append(ctx.attempt)
    async for batch in ctx.chunks(select(Author.id), size=10):
        await batch.session.execute(update(Author).where(Author.id.in_(list(batch))).values(seen=Author.seen + 1))
        await use["it"](ctx)
    return ctx.rows_done


@pytest_asyncio.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    port = make_url(settings.database.url).port
    assert port is not None
    async with proxied(port) as opened:
        attempts.clear()
        yield opened


@pytest.fixture
def through(fast: Settings, proxy: Proxy) -> Settings:
    """Settings whose database is behind the proxy."""
    url = make_url(fast.database.url).set(port=proxy.port).render_as_string(hide_password=False)
    return fast.model_copy(update={"database": fast.database.model_copy(update={"url": url})})


# --- other servers, and the job's own doing


async def call_with_asyncpg(ctx: JobContext) -> None:
    await asyncpg.connect(f"postgresql://localhost:{free_port()}/none")


async def call_with_sqlalchemy(ctx: JobContext) -> None:
    engine = create_async_engine(f"postgresql+asyncpg://localhost:{free_port()}/none")
    async with engine.connect():
        pass


async def call_with_redis(ctx: JobContext) -> None:
    async with Redis(port=free_port()) as other:
        await other.ping()


async def call_in_a_group(ctx: JobContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(call_with_asyncpg(ctx))


async def end_its_own_connection(ctx: JobContext) -> None:
    async with ctx.transaction() as session:
        await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def write_in_its_own_read_only_transaction(ctx: JobContext) -> None:
    async with ctx.transaction() as session:
        await session.execute(text("SET TRANSACTION READ ONLY"))
        await session.execute(text("UPDATE author SET seen = 9"))


OWN = [
    call_with_asyncpg,
    call_with_sqlalchemy,
    call_with_redis,
    call_in_a_group,
    end_its_own_connection,
    write_in_its_own_read_only_transaction,
]


@pytest.mark.parametrize("call", OWN, ids=lambda call: call.__name__)
async def test_attempts_are_counted_while_our_servers_are_available(
    call: Callable[[JobContext], Awaitable[Any]], proxy: Proxy, client: Client, fast: Settings, database: Database
) -> None:
    use["it"] = call
    await fill_authors(database, 5)
    async with working(fast, uses_servers):
        run = await client.enqueue(uses_servers)
        with pytest.raises(JobFailed) as failed:
            await run.result(timeout=120)
    assert attempts == [1, 2]
    if call is call_with_redis:
        assert "refused, but the worker's own Redis accepts new ones: ConnectionError: " in str(failed.value)
    if call is write_in_its_own_read_only_transaction:
        assert "cannot execute UPDATE in a read-only transaction" in str(failed.value)
    assert await count_seen(database) == {0: 5}


@job(max_attempts=2, do_not_retry=[RedisConnectionError, OSError])
async def gives_up(ctx: JobContext) -> None:
    attempts.append(ctx.attempt)
    await use["it"](ctx)


@pytest.mark.parametrize("call", [call_with_asyncpg, call_with_redis], ids=lambda call: call.__name__)
@pytest.mark.usefixtures("database")
async def test_do_not_retry_counts_for_an_error_of_a_connection(
    call: Callable[[JobContext], Awaitable[Any]], proxy: Proxy, client: Client, fast: Settings
) -> None:
    use["it"] = call
    async with working(fast, gives_up):
        run = await client.enqueue(gives_up)
        with pytest.raises(JobFailed):
            await run.result(timeout=120)
    assert attempts == [1]


# --- our servers


async def use_a_transaction(ctx: JobContext) -> None:
    async with ctx.transaction() as session:
        await session.execute(text("SELECT 1"))


async def use_a_session(ctx: JobContext) -> None:
    async with ctx.session() as session:
        await session.execute(text("SELECT 1"))


async def use_a_group(ctx: JobContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(use_a_transaction(ctx))


@asynccontextmanager
async def postgresql_is_away(proxy: Proxy) -> AsyncIterator[None]:
    """End all connections of the worker, and accept no new ones."""
    there, proxy.target = proxy.target, free_port()
    proxy.cut()
    try:
        yield
    finally:
        proxy.target = there


@pytest.mark.parametrize("call", [use_a_transaction, use_a_session, use_a_group], ids=lambda call: call.__name__)
async def test_no_attempt_is_counted_while_our_server_is_away(
    call: Callable[[JobContext], Awaitable[Any]], proxy: Proxy, client: Client, through: Settings, database: Database
) -> None:
    use["it"] = call
    async with working(through, uses_servers):
        async with postgresql_is_away(proxy):
            run = await client.enqueue(uses_servers)
            await until_true(lambda: len(attempts) >= 4)
            assert set(attempts) == {1}
        assert await run.result(timeout=120) == "done"


# --- a server that rejects writes


@asynccontextmanager
async def read_only(settings: Settings, *, ends_sessions: bool) -> AsyncIterator[None]:
    """Let the database reject writes in sessions that begin now, as after a failover to a standby."""
    url = make_url(settings.database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    admin = await asyncpg.connect(url)
    name = await admin.fetchval("SELECT quote_ident(current_database())")
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    try:
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await admin.execute(end)
        yield
    finally:
        await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        if ends_sessions:
            await admin.execute(end)
        await admin.close()


async def test_a_lost_connection_is_not_counted_while_the_server_rejects_writes(
    client: Client, fast: Settings, database: Database
) -> None:
    attempts.clear()
    use["it"] = end_its_own_connection
    async with working(fast, uses_servers):
        async with read_only(fast, ends_sessions=False):
            run = await client.enqueue(uses_servers)
            await until_true(lambda: len(attempts) >= 3)  # more than max_attempts
            use["it"] = use_a_transaction
        assert await run.result(timeout=120) == "done"


REFUSALS = 4
#: A failover that is over as soon as it was noticed: the numbers of a sequence are not rolled back.
_REFUSE = (
    "CREATE SEQUENCE public.refusals",
    "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    f"IF nextval('public.refusals') <= {REFUSALS} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '%s'; END IF; "
    "RETURN NEW; END $$",
    "CREATE TRIGGER refuse BEFORE UPDATE ON worker.run FOR EACH ROW EXECUTE FUNCTION public.refuse()",
)


@pytest.mark.parametrize("code", ["25006", "57P01", "08006"])
async def test_a_claim_that_fails_in_a_failover_costs_no_attempt(
    client: Client, fast: Settings, database: Database, code: str
) -> None:
    attempts.clear()
    use["it"] = wait_a_moment
    await fill_authors(database, 200)
    async with working(with_worker(fast, drain_timeout_seconds=0.1), walks):
        run = await client.enqueue(walks)
        await until_true(lambda: attempts)
    assert await run.status() == "waiting"
    try:
        async with database.transaction() as session:
            for statement in _REFUSE:
                await session.execute(text(statement % code if "%s" in statement else statement))
        async with working(fast, walks):
            assert await run.result(timeout=120) == 200
    finally:
        async with database.transaction() as session:
            for kind in ("FUNCTION public.refuse CASCADE", "SEQUENCE public.refusals"):
                await session.execute(text(f"DROP {kind}"))
    assert len(attempts) == 2, "the code of the job ran in no attempt whose claim had failed"
    assert await count_seen(database) == {1: 200}


async def wait_a_moment(ctx: JobContext) -> None:
    await asyncio.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("ends_sessions", [False, True])
async def test_walk_waits_while_the_server_rejects_writes(
    client: Client,
    fast: Settings,
    database: Database,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    ends_sessions: bool,
) -> None:
    use["it"] = wait_a_moment
    await fill_authors(database, 200)
    settings = with_worker(fast, lease_seconds=1.0)
    ledger = Ledger(database)

    async def has_begun() -> bool:
        return sum(count for seen, count in (await count_seen(database)).items() if seen) >= 50

    async with working(settings, walks):
        run = await client.enqueue(walks)
        await until(has_begun)
        async with read_only(settings, ends_sessions=ends_sessions):
            await until_true(lambda: caplog.text.count("cannot execute INSERT in a read-only") >= 2)
            assert await run.status() != "dead"
            assert await redis.hgetall("worker:dead") == {}
            known = await ledger.find(run.id)
            assert known is not None
            assert not known.finished
        assert await run.result(timeout=120) == 200
    assert await count_seen(database) == {1: 200}
    known = await ledger.find(run.id)
    assert known is not None
    assert known.state == "succeeded"
    assert [json.loads(value) for value in (await redis.hgetall("worker:dead")).values()] == []
