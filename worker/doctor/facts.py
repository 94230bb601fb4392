"""What is to be known of both servers, asked once; the checks look at this, and at nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import text

from worker.db.engine import Database
from worker.db.migrate import check_migrated
from worker.errors import DatabaseNotMigrated, RegistrationError, ServerUnavailable
from worker.job.registry import discover
from worker.queue import keys
from worker.queue.connection import connection_pool
from worker.settings import Settings, mask_passwords

_CONFIG: Any = ("save", "timeout")
_POSTGRES = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_name,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int AS reserved_connections,
       current_setting('autovacuum')::bool AS autovacuum, current_setting('fsync')::bool AS fsync,
       pg_is_in_recovery() AS in_recovery, pg_has_role('pg_monitor', 'member') AS may_see_sessions,
       extract(epoch FROM clock_timestamp())::float8 AS clock
"""


@dataclass(frozen=True)
class RedisFacts:
    """Redis or Valkey.

    Attributes:
        info: of INFO.
        config: of CONFIG GET; empty where this user may not ask.
        no_tracking: why it does not tell of changes; empty where it does.
        clock_ahead: seconds that its clock is ahead of this one.
        workers: processes that have been seen of late.
    """

    info: Mapping[str, Any]
    config: Mapping[str, str]
    no_tracking: str
    clock_ahead: float
    workers: int


@dataclass(frozen=True)
class PostgresFacts:
    """PostgreSQL.

    Attributes:
        version: as `server_version_num` has it.
        version_name: as people write it.
        max_connections: of the server.
        reserved_connections: of those, for superusers only.
        autovacuum: whether it is on.
        fsync: whether it is on.
        in_recovery: whether it is a replica.
        may_see_sessions: whether this role may see the sessions of others.
        pooled: whether PgBouncer is between.
        not_migrated: what is to be said where the ledger is missing or old.
        clock_ahead: seconds that its clock is ahead of this one.
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


@dataclass(frozen=True)
class Facts:
    """Everything; a server that does not answer is the line that says so."""

    settings: Settings
    redis: RedisFacts | str
    postgres: PostgresFacts | str
    jobs: int | str


async def gather(settings: Settings) -> Facts:
    """Ask both servers, and load the jobs."""
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
        workers = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(keys.WORKERS))
        return RedisFacts(info, await _config(redis), await _no_tracking(redis), ahead, _alive(workers))
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
    """Try what worker/queue/watch.py does: word of changes, on another connection."""
    async with redis.client() as hearer, redis.client() as reader:
        asking: Any = reader
        try:
            await asking.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", await hearer.client_id())
            await asking.execute_command("CLIENT", "TRACKING", "OFF")
        except ResponseError as error:
            return str(error)
    return ""


def _alive(workers: Mapping[bytes, bytes]) -> int:
    states = [json.loads(told).get("state") for told in workers.values()]
    return len([state for state in states if state != "stopped"])


async def _postgres(settings: Settings) -> PostgresFacts | str:
    small = settings.database.model_copy(update={"pool_size": 1, "max_overflow": 1})
    database = Database(settings.model_copy(update={"database": small}), "doctor")
    try:
        await database.check()
        async with database.connection() as connection:
            before = time.time()
            row = (await connection.execute(text(_POSTGRES))).one()._asdict()
            ahead = row.pop("clock") - (before + time.time()) / 2
        not_migrated = ""
        try:
            await check_migrated(database)
        except DatabaseNotMigrated as error:
            not_migrated = str(error)
        return PostgresFacts(**row, pooled=database.pooled, not_migrated=not_migrated, clock_ahead=ahead)
    except ServerUnavailable as error:
        return str(error)
    finally:
        await database.close()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
