"""The facts about both servers, queried once. The checks examine these facts, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import text

from worker.batch.catalog import list_unindexed_children
from worker.batch.key_order import find_serving_index
from worker.db.collations import find_changed_collations
from worker.db.engine import Database
from worker.db.migrate import check_migrated
from worker.errors import DatabaseNotMigrated, RegistrationError, ServerUnavailable
from worker.job.registry import discover
from worker.ledger.outbox import OutboxState, read_outbox_state
from worker.queue import keys
from worker.queue.connection import connection_pool
from worker.queue.key_check import find_key_problems
from worker.queue.key_problems import KeyProblem
from worker.queue.overview import describe_workers
from worker.settings import Settings, mask_passwords

_CONFIG: Any = ("save", "timeout")
_POSTGRES = """
SELECT pg_catalog.current_setting('server_version_num')::int AS version,
       pg_catalog.current_setting('server_version') AS version_name,
       pg_catalog.current_setting('max_connections')::int AS max_connections,
       pg_catalog.current_setting('superuser_reserved_connections')::int AS reserved_connections,
       pg_catalog.current_setting('autovacuum')::bool AS autovacuum,
       pg_catalog.current_setting('fsync')::bool AS fsync,
       pg_catalog.pg_is_in_recovery() AS in_recovery,
       pg_catalog.pg_has_role('pg_monitor', 'member') AS may_see_sessions,
       extract(epoch FROM pg_catalog.clock_timestamp())::float8 AS clock
"""
_WALKS = """
SELECT DISTINCT kind, key, statement LIKE 'DELETE %' AS deletes
  FROM worker.step
 WHERE updated_at > pg_catalog.now() - interval '7 days' AND kind IN ('chunks', 'sweep', 'stream')
   AND statement NOT LIKE '%GROUP BY%'
 LIMIT 200
"""


@dataclass(frozen=True)
class MissingIndex:
    """An index that a walk of the last days would need.

    Attributes:
        problem: The consequence.
        cure: The statement that makes the index.
    """

    problem: str
    cure: str


@dataclass(frozen=True)
class RedisFacts:
    """Redis or Valkey.

    Attributes:
        info: The answer to INFO.
        config: The answer to CONFIG GET; empty if this user may not send it.
        no_tracking: The reason why Redis does not announce changes; empty if it does.
        clock_ahead: Seconds by which its clock is ahead of this host's.
        workers: The number of running worker processes.
        key_problems: The keys that have a wrong type or value.
    """

    info: Mapping[str, Any]
    config: Mapping[str, str]
    no_tracking: str
    clock_ahead: float
    workers: int
    key_problems: tuple[KeyProblem, ...] = ()


@dataclass(frozen=True)
class PostgresFacts:
    """PostgreSQL.

    Attributes:
        version: The value of `server_version_num`.
        version_name: The version in readable form.
        max_connections: The number of connections of the server.
        reserved_connections: The number of connections that are reserved for superusers.
        autovacuum: Whether autovacuum is on.
        fsync: Whether fsync is on.
        in_recovery: Whether the server is a replica.
        may_see_sessions: Whether this role may see the sessions of other roles.
        pooled: Whether connections go through PgBouncer.
        not_migrated: The message if the ledger is missing or old; empty if it is up to date.
        clock_ahead: Seconds by which its clock is ahead of this host's.
        missing_indexes: The indexes that walks of the last seven days would need, from the ledger.
        changed_collations: The collations of tables whose version has changed.
        outbox: The state of the outbox; None if the ledger is missing or old.
    """

    version: int
    version_name: str
    max_connections: int
    reserved_connections: int
    autovacuum: bool
    fsync: bool
    in_recovery: bool
    may_see_sessions: bool
    pooled: bool
    not_migrated: str
    clock_ahead: float
    missing_indexes: tuple[MissingIndex, ...] = ()
    changed_collations: tuple[str, ...] = ()
    outbox: OutboxState | None = None


@dataclass(frozen=True)
class Facts:
    """All facts. A server that does not answer is represented by the error message."""

    settings: Settings
    redis: RedisFacts | str
    postgres: PostgresFacts | str
    jobs: int | str


async def gather(settings: Settings) -> Facts:
    """Query both servers, and load the jobs."""
    return Facts(settings, await _redis(settings), await _postgres(settings), _jobs(settings))


def _jobs(settings: Settings) -> int | str:
    try:
        return len(discover(settings.worker.packages))
    except RegistrationError as error:
        return str(error)


async def _redis(settings: Settings) -> RedisFacts | str:
    redis = Redis.from_pool(connection_pool(settings))
    try:
        before = time.time()
        seconds, micros = await redis.time()
        ahead = seconds + micros / 1e6 - (before + time.time()) / 2
        info = await redis.info()
        problems = await find_key_problems(redis, settings.worker.queues or [settings.worker.queue])
        return RedisFacts(
            info,
            await _config(redis),
            await _no_tracking(redis),
            ahead,
            await _alive(redis, settings.worker.lease_seconds),
            tuple(one.in_namespace(settings.redis.prefix) for one in problems),
        )
    except (RedisError, OSError) as error:
        return f"Redis at {mask_passwords(settings.redis.url)}: {str(error).rstrip('.')}"
    finally:
        await redis.aclose()


async def _config(redis: Redis) -> dict[str, str]:
    try:
        found = await redis.config_get("maxmemory-policy", *_CONFIG)
    except ResponseError:
        return {}  # a hosted server
    return {_text(name): _text(value) for name, value in found.items()}


async def _no_tracking(redis: Redis) -> str:
    """Check that Redis announces changes on another connection, which `queue/invalidations.py` needs."""
    async with redis.client() as listener, redis.client() as reader:
        tracked: Any = reader
        try:
            await tracked.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", await listener.client_id())
            await tracked.execute_command("CLIENT", "TRACKING", "OFF")
        except ResponseError as error:
            return str(error)
    return ""


async def _alive(redis: Redis, lease_seconds: float) -> int:
    try:
        raw = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(keys.WORKERS))
    except ResponseError:
        return 0  # a key of another type, which is reported as a problem
    workers = describe_workers(raw, lease_seconds, datetime.now(UTC))
    return len([worker for worker in workers.values() if worker["state"] not in ("stopped", "lost")])


async def _postgres(settings: Settings) -> PostgresFacts | str:
    small = settings.database.model_copy(update={"pool_size": 1, "max_overflow": 1})
    database = Database(settings.model_copy(update={"database": small}), "doctor")
    try:
        await database.check()
        async with database.connection() as connection:
            before = time.time()
            row = (await connection.execute(text(_POSTGRES))).one()._asdict()
            ahead = row.pop("clock") - (before + time.time()) / 2
            row["changed_collations"] = tuple(await find_changed_collations(connection))
        not_migrated = ""
        try:
            await check_migrated(database)
        except DatabaseNotMigrated as error:
            not_migrated = str(error)
        return PostgresFacts(
            **row,
            pooled=database.pooled,
            not_migrated=not_migrated,
            clock_ahead=ahead,
            missing_indexes=() if not_migrated else await _missing_indexes(database),
            outbox=None if not_migrated else await _outbox(database),
        )
    except ServerUnavailable as error:
        return str(error)
    finally:
        await database.close()


async def _outbox(database: Database) -> OutboxState:
    async with database.connection() as connection:
        return await read_outbox_state(connection)


async def _missing_indexes(database: Database) -> tuple[MissingIndex, ...]:
    """Return the indexes that the walks in the ledger would need: for their order, and for deleted rows."""
    found: dict[str, MissingIndex] = {}
    async with database.connection() as connection:
        for walk in (await connection.execute(text(_WALKS))).all():
            names = [str(part[0]).rpartition(".") for part in walk.key]
            if len({table for table, _, _ in names}) != 1 or not names[0][0]:
                continue  # a key of several tables, or a source without a table
            quote = connection.dialect.identifier_preparer.quote
            table = ".".join(quote(part) for part in names[0][0].split("."))
            columns = [column for _, _, column in names]
            descending = [part[2] == "desc" for part in walk.key]
            exists = await connection.scalar(text("SELECT pg_catalog.to_regclass(:table)"), {"table": table})
            if exists and await find_serving_index(connection, table, columns, descending) is None:
                shown = ", ".join(columns)
                cure = f"CREATE INDEX CONCURRENTLY ON {table} ({', '.join(map(quote, columns))})"
                problem = (
                    f"no index has the order ({shown}) of {walk.kind} over {table}: each batch sorts the rest of it"
                )
                found[cure] = MissingIndex(problem, cure)
            for child, key in await list_unindexed_children(connection, table) if walk.deletes else []:
                cure = f"CREATE INDEX CONCURRENTLY ON {child} ({key})"
                problem = f"a sweep deletes rows of {table}, and for each of them all of {child} is read by ({key})"
                found[cure] = MissingIndex(problem, cure)
    return tuple(found.values())


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
