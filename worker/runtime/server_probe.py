"""Detects an unavailable server: an error reports a lost connection, and a new connection to that server fails, too.

The error alone is not enough. A batch can lose its own connection (its body takes longer than
`database.idle_in_transaction_timeout_seconds`, or its query ends the backend), and a job may have connections to other
servers. Such an error counts as an error of the job and uses up an attempt, so that the run ends eventually.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.exceptions import RedisError

from worker.attempt.attempt import Attempt
from worker.db import errors as postgresql
from worker.db.engine import Database
from worker.errors import ConnectionLost, ServerUnavailable, format_error
from worker.queue import errors as redis_errors

_PROBE_SECONDS = 5.0


async def confirm_error(error: BaseException, attempt: Attempt | None, database: Database, redis: Any) -> BaseException:
    """Return the error that determines the outcome of an attempt.

    Args:
        error: The error.
        attempt: The attempt; None if it has not begun.
        database: The worker's database.
        redis: The worker's connection to Redis.

    Returns:
        The error itself, or `ConnectionLost` if it reports a lost connection to a server that accepts a new one.
    """
    if postgresql.is_unavailable(error):
        answers = await _answers(database.check())
    elif redis_errors.is_unavailable(error):
        answers = await _answers(redis.ping())
    else:
        return error
    if not answers:
        return error
    lost = ConnectionLost(_describe(error, attempt, database))
    return lost.with_traceback(error.__traceback__)


async def _answers(probe: Any) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            await probe
    except (ServerUnavailable, RedisError, OSError, TimeoutError):
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
    return f"{where or 'the job'}: a connection was lost, but its server accepts new ones: {format_error(error)}"
