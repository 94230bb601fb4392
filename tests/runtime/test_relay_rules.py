"""Relay: the rules of a job for rows of the SQL function, and the results of duplicates."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import unicodedata
from collections.abc import Callable
from contextvars import ContextVar

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.runtime.relay_killed import make_relay
from tests.support.waiting import until_status
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, SyncClient, job
from worker.db.engine import Database
from worker.job.propagation import propagate
from worker.queue import keys
from worker.queue.payload import read_run_id


@job(unique=["name"], priority=4)
async def greet_once(ctx: JobContext, name: str, times: int = 1) -> str:
    """Greet a name once at a time."""
    return f"hello {name}" * times


@job(fair_by="tenant", fair_weights={"north": 2})
async def bill(ctx: JobContext, tenant: str) -> str:
    """Take turns."""
    return tenant


@job(once=True)
async def fill_column(ctx: JobContext) -> str:
    """Be a data migration."""
    return "filled"


@job
async def tell(ctx: JobContext) -> list[str]:
    """Return what has travelled with the run."""
    return [*sorted(f"{name}={text}" for name, text in ctx.headers.items()), region.get()]


region = propagate(ContextVar("region", default="nowhere"))
JOBS = (greet_once, bill, fill_column, tell)


async def relay(settings: Settings, redis: Redis) -> None:
    """Relay what the outbox has."""
    one = make_relay(settings, redis, *JOBS)
    try:
        await one.relay_waiting()
    finally:
        await one.close()


async def call_function(database: Database, job: str, arguments: str = "{}", options: str = "") -> str:
    """Enqueue by the SQL function. Return the id of the run."""
    call = text(f"SELECT worker.enqueue('{job}', CAST(:given AS jsonb){options})")
    async with database.transaction() as session:
        return str(await session.scalar(call, {"given": arguments}))


async def test_the_result_of_a_duplicate_is_that_of_the_run_that_was_kept(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    async with database.transaction() as session:
        kept, dropped, blocking = [await client.enqueue_in(session, greet_once, "Ada") for _ in range(3)]
        replacing = await client.enqueue_in(session, greet_once.options(replace=True), "Ada")
    waiting = asyncio.create_task(dropped.result(timeout=120))
    await relay(fast, redis)
    await until_status(dropped, "cancelled")
    assert await kept.status() == "waiting"
    with SyncClient(fast) as sync:
        run = sync.run(blocking.id, greet_once)
        with pytest.raises(TimeoutError):
            run.result(timeout=0.05)
        async with working(fast, *JOBS):
            assert await waiting == await kept.result(timeout=120) == "hello Ada"
            assert await replacing.result(timeout=120) == "hello Ada"
            assert await asyncio.to_thread(run.result, 120) == "hello Ada"
        await redis.delete(keys.RESULT + kept.id, keys.RUN + kept.id)
        for lost in (dropped.result, lambda: asyncio.to_thread(run.result)):
            with pytest.raises(JobFailed, match=f"duplicate of the run {kept.id}, whose result has expired"):
                await lost()


async def test_headers_of_a_transaction_travel_with_its_rows_of_the_sql_function(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    headers = {"tenant": "n\u00f6rd", "region": "eu"}
    async with database.transaction() as session:
        await session.execute(
            text("SELECT set_config('longhaul.headers', :given, true)"), {"given": json.dumps(headers)}
        )
        # A trigger has no arguments of its own: it passes on what its transaction has.
        for statement in (
            "CREATE TABLE public.member (id int)",
            "CREATE FUNCTION public.welcome() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM worker.enqueue(''tell'', id => ''triggered''); RETURN NULL; END'",
            "CREATE TRIGGER welcome AFTER INSERT ON public.member FOR EACH ROW EXECUTE FUNCTION public.welcome()",
            "INSERT INTO public.member VALUES (1)",
            "DROP TABLE public.member",
            "DROP FUNCTION public.welcome()",
        ):
            await session.execute(text(statement))
    async with database.session() as session:  # the same connection, and another transaction
        await session.execute(text("SELECT worker.enqueue('tell', id => 'without')"))
    await relay(fast, redis)
    assert "h" not in json.loads(await redis.get(f"{keys.JOB}without") or "")
    async with working(with_worker(fast, relay=False), *JOBS):
        assert await client.run("triggered").result(timeout=120) == ["region=eu", "tenant=n\u00f6rd", "eu"]
        assert await client.run("without").result(timeout=120) == ["nowhere"]


#: The controls of hieroglyphs that Unicode 15 has added: what is newer than Unicode 14 is left to the relay.
NEWER = {chr(n) for n in range(0x13439, 0x13440)}


def letters() -> list[str]:
    """Return all letters that do not print, but few of the private ones, and a sample of the others."""
    assigned = [chr(n) for n in range(1, sys.maxunicode) if unicodedata.category(chr(n)) not in ("Cn", "Cs")]
    hidden = [one for one in assigned if not one.isprintable() and unicodedata.category(one) != "Co"]
    found = [*hidden, *"\ue000\uf8ff\U000f0000\U0010fffd", *random.Random(7).sample(assigned, 1_000)]
    return [one for one in found if one not in NEWER]


REFUSED = """
CREATE FUNCTION pg_temp.refused(letters text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE letter text;
BEGIN
    FOREACH letter IN ARRAY letters LOOP
        BEGIN
            PERFORM worker.enqueue('tell', {name} => 'a' || letter);
        EXCEPTION WHEN invalid_parameter_value THEN
            RETURN NEXT letter;
        END;
    END LOOP;
END $$
"""


@pytest.mark.parametrize(("name", "accepts"), [("id", read_run_id), ("queue", str.isprintable)])
async def test_the_sql_function_refuses_the_letters_that_clients_refuse(
    database: Database, name: str, accepts: Callable[[str], object]
) -> None:
    tried = letters()
    async with database.transaction() as session:
        await session.execute(text(REFUSED.format(name=name)))
        refused = set(await session.scalars(text("SELECT pg_temp.refused(:letters)"), {"letters": tried}))
    assert refused == {letter for letter in tried if not accepts(letter)}


async def test_rows_of_the_sql_function_get_the_rules_of_their_job(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    first = await call_function(database, "greet_once", '{"name": "Ada"}')
    same = await call_function(database, "greet_once", '{"name": "Ada", "times": 2}', ", priority => 7")
    by_client = await client.enqueue(greet_once, "Bob")
    of_function = await call_function(database, "greet_once", '{"name": "Bob"}')
    billed = await call_function(database, "bill", '{"tenant": "north"}')
    wrong = await call_function(database, "greet_once", '{"nome": "Ada"}')
    await call_function(database, "fill_column")
    once = await call_function(database, "fill_column", options=", id => 'fill_column'")
    await relay(fast, redis)
    assert set(await redis.zrange(keys.priority_line("arq:queue", 4), 0, -1)) == {
        one.encode() for one in (first, by_client.id, wrong)
    }
    assert await redis.hgetall(f"{keys.FAIR_FLOWS}arq:queue") == {billed.encode(): b"2 tenant=north"}
    async with database.connection() as connection:
        [problem] = await connection.scalars(text("SELECT problem FROM worker.outbox"))
    assert problem == "fill_column is a data migration, which has one run: enqueue it with id => 'fill_column'"
    async with working(with_worker(fast, relay=False), *JOBS):
        assert await client.run(same).result(timeout=120) == await client.run(first).result(timeout=120) == "hello Ada"
        assert await client.run(of_function).result(timeout=120) == "hello Bob"
        assert await client.run(once).result(timeout=120) == "filled"
        assert await client.run(billed).result(timeout=120) == "north"
        with pytest.raises(JobFailed, match="nome"):
            await client.run(wrong).result(timeout=120)
    async with database.connection() as connection:
        await connection.execute(text("DELETE FROM worker.outbox"))
        await connection.commit()
