"""Least privilege: what each kind of process must not do is refused, command by command and statement by statement."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.roles.conftest import Limited, with_role
from worker.db.engine import Database
from worker.settings import Settings

#: No user may stop, empty or reconfigure the server, read all names of keys, run code of its own, or see other data.
NEVER = (
    *("FLUSHALL", "FLUSHDB", "SHUTDOWN NOSAVE", "CONFIG SET maxmemory 1", "CONFIG GET *", "ACL LIST", "ACL WHOAMI"),
    *(
        "KEYS *",
        "RANDOMKEY",
        "MONITOR",
        "SAVE",
        "BGSAVE",
        "REPLICAOF NO ONE",
        "SWAPDB 0 1",
        "SELECT 1",
    ),
    *("EVAL return 0", "FUNCTION LIST", "SCRIPT FLUSH", "CLIENT LIST", "CLIENT KILL ID 1", "CLIENT PAUSE 1"),
    *("RENAME worker:dead x", "COPY worker:dead x", "DUMP worker:dead", "MIGRATE h 1 k 0 1", "SORT worker:paused"),
    *("GET session:1", "SET session:1 x", "DEL session:1", "PUBLISH news x", "SUBSCRIBE news", "PSUBSCRIBE *"),
)
REFUSED = {
    "worker": (),
    "operator": ("HINCRBY worker:jobs plain:succeeded 1", "PSETEX arq:queue:health-check 1 x", "WATCH worker:dead"),
    "client": (
        *("SADD worker:paused *", "HSET worker:pace * 1", "HSET worker:limits plain 1", "SADD worker:drain w"),
        *("SADD worker:retry r", "SET arq:result:x 1", "SET arq:in-progress:x me", "DEL arq:in-progress:x"),
        *(
            "HSET worker:run:x state succeeded",
            "HSET worker:dead x y",
            "ZADD worker:dead:at 1 x",
            "HGETALL worker:dead",
        ),
        *("XADD worker:events * a b", "HGETALL worker:workers", "INCR arq:retry:x", "SMEMBERS worker:cancelled"),
        *("SCAN 0", "SET worker:relayed:x 1", "SET worker:idempotent:x 1", "INFO"),
    ),
    "reader": (
        *("ZADD arq:queue 0 x", "SET arq:job:x 1", "DEL arq:job:x", "SADD worker:cancelled x", "SADD worker:paused *"),
        *(
            "HSET worker:pace * 1",
            "EVALSHA 0 0",
            "SCRIPT LOAD return",
            "XADD worker:events * a b",
            "SREM worker:paused x",
        ),
    ),
}
#: Statements that a role must not run.
STATEMENTS = {
    "worker": (
        *("DROP TABLE worker.run", "TRUNCATE worker.run", "CREATE TABLE worker.mine (id int)", "DELETE FROM author"),
        *("UPDATE worker.data_migration SET name = 'x'", "DELETE FROM worker.cron_firing", "CREATE SCHEMA mine"),
        *("UPDATE worker.operator_order SET ordered_by = 'x'", "UPDATE worker.outbox SET payload = 'x'"),
        *("UPDATE worker.schema_version SET version_num = 'x'", "CREATE ROLE mine", "COPY author TO PROGRAM 'true'"),
        *("ALTER FUNCTION worker.enqueue SECURITY INVOKER", "ALTER TABLE worker.outbox DISABLE TRIGGER ALL"),
    ),
    "client": (
        *("SELECT * FROM worker.outbox", "SELECT * FROM worker.run", "UPDATE worker.outbox SET problem = NULL"),
        *("DELETE FROM worker.outbox", "INSERT INTO worker.run (id) VALUES ('a')", "CREATE TABLE worker.mine (id int)"),
        "INSERT INTO worker.outbox (run_id, job, payload, problem) VALUES ('a', 'b', 'c', 'd')",
        "INSERT INTO worker.outbox (run_id, job, payload, mark) VALUES ('a', 'b', 'c', pg_catalog.gen_random_uuid())",
    ),
    "enqueue": (
        *("SELECT * FROM worker.outbox", "DELETE FROM worker.outbox", "SELECT * FROM worker.step"),
        "INSERT INTO worker.outbox (run_id, job, payload) VALUES ('a', 'b', 'c')",
    ),
    "reader": (
        *("DELETE FROM worker.run", "UPDATE worker.step SET cursor = NULL", "SELECT worker.enqueue('plain')"),
        *("INSERT INTO worker.outbox (run_id, job, payload) VALUES ('a', 'b', 'c')", "SELECT * FROM worker.selection"),
        *("SELECT FROM worker.run FOR UPDATE", "SELECT * FROM public.author", "DELETE FROM worker.quarantine"),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_user_of_redis_is_refused_everything_else(limited: Limited, kind: str) -> None:
    settings: Settings = getattr(limited, kind)
    async with Redis.from_url(settings.redis.url) as user:
        for command in (*NEVER, *REFUSED[kind]):
            with pytest.raises(NoPermissionError):
                await user.execute_command(*(word or "0" for word in command.split(" ")))
                pytest.fail(f"{kind} may run {command}")


async def test_a_user_without_a_password_cannot_log_in(limited: Limited) -> None:
    await limited.admin.execute_command("ACL", "SETUSER", "lh-reader", "resetpass")
    async with Redis.from_url(limited.reader.redis.url) as user:
        with pytest.raises(Exception, match=r"invalid username-password|WRONGPASS"):
            await user.ping()


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("kind", STATEMENTS)
async def test_a_role_of_postgresql_is_refused_everything_else(fast: Settings, kind: str) -> None:
    limited = Database(with_role(fast, kind), kind)
    try:
        for statement in STATEMENTS[kind]:
            with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                async with limited.transaction() as session:
                    await session.execute(text(statement))
                    pytest.fail(f"{kind} may run {statement}")
    finally:
        await limited.close()
