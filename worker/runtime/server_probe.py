"""Detects an unavailable server: an error reports that it is away, and a new connection to that server fails, too.

The error alone is not enough. A batch can lose its own connection (its body takes longer than
`database.idle_in_transaction_timeout_seconds`, or its query ends the backend), a job can have connections to other
servers, and a transaction that a job has set READ ONLY raises the same error as a standby. Such an error counts as an
error of the job and uses up an attempt, so that the run ends eventually.

All errors that an attempt raises are checked here, whether they come out of a loop, a `ctx.transaction()`, or a task
group of the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any

from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from worker.attempt.attempt import Attempt
from worker.db import errors as postgresql
from worker.db.engine import Database
from worker.errors import ConnectionLost, format_error, iter_causes
from worker.queue import errors as redis_errors
from worker.queue import keys
from worker.runtime.ledger_claims import LedgerUnavailable

_PROBE_SECONDS = 5.0


async def is_server_unavailable(error: BaseException, database: Database, redis: Any) -> bool:
    """Return whether an error of an attempt reports that PostgreSQL or Redis is unavailable, and it still is.

    An error of the ledger before the job's code has run is never the job's, whether or not the server is back by now.

    Args:
        error: The error, or a group of errors.
        database: The worker's database.
        redis: The worker's connection to Redis.
    """
    causes = list(_iter_members(error))
    if isinstance(error, LedgerUnavailable):
        await database.accepts_writes(replace=postgresql.is_read_only(error))
        return True
    if any(map(postgresql.is_unavailable, causes)):
        # Also after a lost connection: in a failover, the server that accepts the next one may be a standby.
        accepted = await database.accepts_writes(replace=any(map(postgresql.is_read_only, causes)))
        if not accepted:
            return True
    if any(map(redis_errors.is_unavailable, causes)):
        return not await _answers(_write(redis) if any(map(_rejects_writes, causes)) else redis.ping())
    return False


def explain(error: BaseException, attempt: Attempt | None, database: Database) -> BaseException:
    """Return the error of an attempt whose servers are available.

    Returns:
        The error itself, or `ConnectionLost` with the probable reason if it reports a lost connection.
    """
    is_lost = postgresql.is_unavailable(error) and not postgresql.is_read_only(error)
    if not is_lost and not (redis_errors.is_unavailable(error) and not _rejects_writes(error)):
        return error
    return ConnectionLost(_describe(error, attempt, database)).with_traceback(error.__traceback__)


def _iter_members(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _iter_members(each)
    else:
        yield error


def _rejects_writes(error: BaseException) -> bool:
    return any(isinstance(cause, ReadOnlyError | OutOfMemoryError) for cause in iter_causes(error))


async def _write(redis: Any) -> None:
    await redis.set(keys.PROBE, 1, px=1)


async def _answers(probe: Awaitable[Any]) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            await probe
    except (RedisError, OSError):
        return False
    return True


def _describe(error: BaseException, attempt: Attempt | None, database: Database) -> str:
    failure = None if attempt is None else attempt.failure
    where = None if attempt is None else attempt.where
    limit = database.settings.database.idle_in_transaction_timeout_seconds
    is_idle = postgresql.sqlstate(error) == "25P03" or (failure is not None and limit and failure.seconds >= limit)
    if failure is not None and is_idle:
        return (
            f"{where}: the body took longer than database.idle_in_transaction_timeout_seconds ({limit:g} s), so "
            f"PostgreSQL ended the connection that holds its locks: walk with lock=False, make slow calls with "
            f"batch.gather, or take a smaller size= ({format_error(error)})"
        )
    server = "PostgreSQL" if postgresql.is_unavailable(error) else "Redis"
    return (
        f"{where or 'the job'}: a connection was lost or refused, but the worker's own {server} accepts new ones: "
        f"{format_error(error)}"
    )
