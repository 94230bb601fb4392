"""Relay: runs of the outbox reach their queues, each once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from tests.models import Author
from tests.runtime.relay_killed import make_relay
from tests.support.authors import fill_authors
from tests.support.fork_server import spawn_with_pipe
from tests.support.waiting import until, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.doctor import examine
from worker.queue import keys
from worker.runtime import relay as relay_module
from worker.runtime.relay import Relay

RAN: Counter[str] = Counter()


@job
async def note(ctx: JobContext, name: str) -> str:
    """Count each name."""
    RAN[name] += 1
    return name


@job(unique=["name"])
async def note_once(ctx: JobContext, name: str) -> None:
    """Count each name."""
    RAN[name] += 1


@pytest.fixture(autouse=True)
def _forget_runs() -> None:
    RAN.clear()


@asynccontextmanager
async def relaying(settings: Settings, redis: Redis) -> AsyncIterator[Relay]:
    """Return a relay that is part of no worker, and close it at the end."""
    relay = make_relay(settings, redis)
    try:
        yield relay
    finally:
        await relay.close()


async def count_rows(database: Database) -> int:
    """Return the number of rows of the outbox."""
    async with database.connection() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM worker.outbox")) or 0)


async def is_empty(database: Database) -> bool:
    """Return whether the outbox is empty."""
    return await count_rows(database) == 0


async def test_runs_of_sessions_connections_and_the_function_reach_the_worker(
    fast: Settings, client: Client, database: Database
) -> None:
    async with working(fast, note):
        async with database.transaction() as session:
            run = await client.enqueue_in(session, note, "session")
            many = await client.enqueue_many_in(session, note, [{"name": f"many {n}"} for n in range(3)])
        assert await run.result(timeout=120) == "session"
        assert [await one.result(timeout=120) for one in many] == ["many 0", "many 1", "many 2"]
        async with database.connection() as connection:
            run = await client.enqueue_in(connection, note, "connection")
            run_id = await connection.scalar(
                text("SELECT worker.enqueue('note', CAST(:a AS jsonb))"), {"a": '{"name": "f"}'}
            )
        assert await run.result(timeout=120) == "connection"
        assert await client.run(run_id).result(timeout=120) == "f"
        await until(lambda: is_empty(database))  # rows are deleted after Redis has acknowledged their runs


async def test_a_notification_wakes_one_relay_and_another_listens_when_that_is_gone(
    settings: Settings, client: Client, redis: Redis, database: Database
) -> None:
    never_polling = with_worker(settings, outbox_poll_seconds=1e6)

    async def wake(relay: Relay, name: str) -> None:
        waiting = asyncio.create_task(relay.run())
        async with database.transaction() as session:
            await client.enqueue_in(session, note.options(id=name), name)
        async with asyncio.timeout(120):
            await waiting
        assert await redis.exists(keys.JOB + name)

    async with relaying(never_polling, redis) as first, relaying(never_polling, redis) as second:
        for relay in (first, second):
            await relay.relay_waiting()
        await wake(first, "first")
        await first.close()
        await second.relay_waiting()  # as it does at each interval
        await wake(second, "second")


async def test_the_relay_that_listens_notices_the_end_of_its_connection_and_looks_again(
    settings: Settings, client: Client, redis: Redis, database: Database
) -> None:
    async with relaying(with_worker(settings, outbox_poll_seconds=1e6), redis) as relay:
        await relay.relay_waiting()
        waiting = asyncio.create_task(relay.run())
        async with database.transaction() as session:  # the row is not announced to it: the connection ends first
            found = "pg_stat_activity WHERE application_name LIKE '%relay%'"
            ended = f"SELECT pg_terminate_backend(pid, 10000) FROM {found}"
            assert await session.scalar(text(ended))
            await client.enqueue_in(session, note.options(id="unheard"), "unheard")
        async with asyncio.timeout(120):
            with suppress(ConnectionError, SQLAlchemyError):
                await waiting
            await relay.run()  # as the periodic task does
        assert await redis.exists(keys.JOB + "unheard")


@job
async def walk_and_note(ctx: JobContext) -> int:
    """Enqueue a run for each row, in the transaction of its batch, and fail once in the second batch."""
    async with Client(ctx.settings) as client:
        async for batch in ctx.chunks(select(Author), size=4):
            await client.enqueue_many_in(batch.session, note, [{"name": str(author.id)} for author in batch])
            if ctx.rows_done and ctx.attempt == 1:
                raise ValueError("in the second batch")
    return ctx.rows_done


async def test_a_walk_enqueues_one_run_for_each_row_with_its_batches(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 10)
    async with working(fast, walk_and_note, note):
        assert await (await client.enqueue(walk_and_note)).result(timeout=120) == 10
        await until_true(lambda: len(RAN) == 10)
        await until(lambda: is_empty(database))
    assert set(RAN.values()) == {1}


async def test_a_burst_relays_before_it_ends(fast: Settings, client: Client, database: Database) -> None:
    async with database.transaction() as session:
        await client.enqueue_in(session, note, "burst")
    async with working(fast, note, burst=True):
        await until_true(lambda: RAN["burst"])
    assert RAN == {"burst": 1}


async def test_the_options_of_a_run_survive_the_outbox(
    settings: Settings, client: Client, redis: Redis, database: Database
) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    async with database.transaction() as session:
        await client.enqueue_in(session, note.options(id="late", at=at, priority=7, queue="other"), "x")
        await client.enqueue_in(session, note.options(id="replaced"), "first")
        await client.enqueue_in(session, note.options(id="replaced", replace=True, delay=60), "second")
        for _ in range(2):
            await client.enqueue_in(session, note_once, "once")
    async with relaying(settings, redis) as relay:
        assert await relay.relay_waiting() == 5
    assert await redis.zscore("other", "late") == pytest.approx(at.timestamp() * 1000, abs=1)
    assert await redis.zscore(keys.priority_line("other", 7), "late") is not None
    assert b'"second"' in await redis.get(keys.JOB + "replaced")
    assert await redis.zscore("arq:queue", "replaced") > datetime.now(UTC).timestamp() * 1000
    assert await redis.zcard("arq:queue") == 2, "one run that was replaced, one of two unique ones"


async def test_a_bad_row_stays_with_its_problem_and_stops_no_other(
    settings: Settings, client: Client, redis: Redis, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {
        "junk": ("not json", None, None),
        "no job": ("{}", None, None),
        "of a worker": ('{"f": "note", "hand": ["a", "b", 2, 1]}', None, None),
        "too large": ('{"f": "note", "k": {"name": "%s"}}' % ("x" * 5_000_000), None, None),
        "of another key": ('{"f": "note"}', "worker:dead:at", None),
        "wrong option": ('{"f": "note"}', None, '{"lock": 1}'),
        "a\tb": ('{"f": "note"}', None, None),
        "no queue": ('{"f": "note"}', "a-string", None),
    }  # fmt: skip
    await redis.set("a-string", "1")
    async with database.transaction() as session:
        insert = text(
            "INSERT INTO worker.outbox (run_id, job, payload, queue, options) "
            "VALUES (:id, 'any', :p, :q, CAST(:o AS jsonb))"
        )
        for run_id, (payload, queue, options) in bad.items():
            await session.execute(insert, {"id": run_id, "p": payload, "q": queue, "o": options})
        await client.enqueue_in(session, note.options(id="good"), "x")
    with caplog.at_level(logging.ERROR, "longhaul.relay"):
        async with relaying(settings, redis) as relay:
            for _ in range(3):
                await relay.relay_waiting()
    assert await redis.zrange("arq:queue", 0, -1) == [b"good"]
    assert len([one for one in caplog.records if one.name == "longhaul.relay"]) == len(bad), "each is logged once"
    async with database.connection() as connection:
        rows = (await connection.execute(text("SELECT run_id, problem FROM worker.outbox"))).all()
        assert {row.run_id for row in rows if row.problem} == set(bad)
        found = (await examine(settings))["postgres outbox"]
        assert (found.level, found.message[:44]) == ("wrong", "8 rows of worker.outbox cannot be relayed: t"), found
        await connection.execute(text("DELETE FROM worker.outbox WHERE run_id <> 'no queue'"))
        await connection.execute(text("UPDATE worker.outbox SET problem = NULL"))
    await redis.delete("a-string")
    async with relaying(settings, redis) as relay:
        await relay.relay_waiting()
    assert await redis.zrange("a-string", 0, -1) == [b"no queue"]
    assert (await examine(settings))["postgres outbox"].level == "fine"


async def test_a_row_with_a_time_that_no_clock_shows_stops_no_other(
    settings: Settings, client: Client, redis: Redis, database: Database
) -> None:
    insert = text(
        "INSERT INTO worker.outbox (run_id, job, payload, due_at, created_at) SELECT :id, 'note', :payload, at, at "
        "FROM (SELECT CAST(CAST(:at AS text) AS timestamptz) AS at) AS given"
    )
    times = {"never": "infinity", "far": "200000-01-01", "at once": "-infinity", "early": "4000-01-01 BC"}
    async with database.transaction() as session:
        for run_id, at in times.items():
            await session.execute(insert, {"id": run_id, "payload": '{"f": "note"}', "at": at})
        await client.enqueue_in(session, note.options(id="good"), "x")
    assert [row.due_at for row in await client.outbox_rows()] == [None] * 5
    assert (await examine(settings))["postgres outbox"].level == "warning", "one of them is old"
    async with relaying(settings, redis) as relay:
        await relay.relay_waiting()
    assert set(await redis.zrange("arq:queue", 0, -1)) == {b"good", b"at once", b"early"}
    found = {row.run_id: row.problem for row in await client.outbox_rows(refused=True)}
    assert found == dict.fromkeys(("never", "far"), "its due time is after the year 9999")


async def test_rows_wait_while_redis_is_away_and_a_late_call_changes_nothing(
    settings: Settings, client: Client, redis: Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.transaction() as session:
        await client.enqueue_in(session, note, "x")
    away = Redis(port=1)
    async with relaying(settings, away) as relay:
        assert await relay.try_relay() == 0
    monkeypatch.setattr(relay_module, "VALID_MS", -1000)
    async with relaying(settings, redis) as relay:
        with pytest.raises(TimeoutError, match="locked for more than"):
            await relay.relay_waiting()
    assert (await count_rows(database), await redis.zcard("arq:queue")) == (1, 0)
    async with database.connection() as connection:
        await connection.execute(text("UPDATE worker.outbox SET created_at = created_at - interval '90 seconds'"))
    found = (await examine(settings))["postgres outbox"]
    assert (found.level, found.message[:43]) == ("warning", "1 run waits in the outbox, the oldest for 9"), found
    monkeypatch.undo()
    async with relaying(settings, redis) as relay:
        assert await relay.relay_waiting() == 1
    assert (await count_rows(database), await redis.zcard("arq:queue")) == (0, 1)


async def test_marks_are_deleted_after_their_rows_and_not_before(
    settings: Settings, client: Client, redis: Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_MARK_MS", -1000)
    async with relaying(settings, redis) as relay:
        async with database.transaction() as session:
            await client.enqueue_in(session, note, "x")
        await relay.relay_waiting()
        async with database.transaction() as session:
            await client.enqueue_in(session, note, "y")
            mark = await session.scalar(text("SELECT id || ':' || mark FROM worker.outbox"))
        key = keys.RELAYED + await relay._ledger.read_application()
        await redis.zadd(key, {mark: 1, "junk": 1, "7:of-a-row-that-is-gone": 1})
        async with database.connection() as connection:
            relay._forget_at = 0.0
            await relay._forget_marks(connection)
        assert await redis.zrange(key, 0, -1) == [mark.encode()]
        await relay.relay_waiting()
        assert await redis.zcard("arq:queue") == 1, "its mark says that it was enqueued before"


async def kill_relays(settings: Settings, client: Client, database: Database, redis: Redis, kills: int) -> None:
    """Kill relays, let each run end without a trace before the next relay looks, and count the runs of each row."""
    never_kept = with_worker(settings, relay=False, result_ttl_seconds=0.0)
    environment = {"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url, "PATH": ""}
    names: list[str] = []
    async with working(never_kept, note):
        for number in range(kills):
            added = [f"{number}.{one}" for one in range(3)]
            names += added
            async with database.transaction() as session:
                await client.enqueue_many_in(session, note, [{"name": name} for name in added])
            moment = ("enqueued", "deleted", "claimed")[number % 3]
            process, output = await spawn_with_pipe("tests.runtime.relay_killed", moment, env=environment)
            await output.read()  # until it has ended
            assert await asyncio.to_thread(process.wait, 60) == -9
            if moment != "claimed":
                await until_true(lambda added=added: all(RAN[name] for name in added))
        async with relaying(settings, redis) as relay:
            while await count_rows(database):
                await relay.relay_waiting()
        await until_true(lambda: len(RAN) == len(names))
        await until(lambda: _has_no_runs(redis))
    assert Counter(names) == RAN


async def _has_no_runs(redis: Redis) -> bool:
    return not await redis.zcard("arq:queue")


async def test_a_relay_that_dies_enqueues_each_row_once(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    await kill_relays(fast, client, database, redis, kills=5)


@pytest.mark.long
async def test_300_relays_that_die_enqueue_each_row_once(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    await kill_relays(fast, client, database, redis, kills=300)
