"""What becomes of a run that failed: another try, and when; or its end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from asyncpg.exceptions import InterfaceError, PostgresConnectionError
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import DBAPIError

from worker.errors import LonghaulError, Retry
from worker.registry import Job
from worker.settings import WorkerSettings

#: SQLSTATEs of a server that is away or about to be: the job is not to blame, so the try does not count.
#: 08 connection exceptions; 57P01 to 57P05 shutdown, crash, starting up, dropped, idle; 53300 too many connections.
_AWAY = ("08", "57P", "53300")
#: Class 42: syntax, unknown table or column, missing privilege. Another try cannot cure it; a person can.
_WRONG = ("42",)


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        again: whether there is another try.
        counts: whether this one counts.
        delay: seconds until the next.
        error: the error in one line.
    """

    again: bool
    counts: bool
    delay: float
    error: str


def judge(
    error: BaseException, job: Job[..., object], *, attempt: int, progressed: bool, rules: WorkerSettings
) -> Verdict:
    """Return what becomes of a run.

    Args:
        error: what the job raised.
        job: the job, for its own rules.
        attempt: number of this try since the last one that committed a batch.
        progressed: whether this one did.
        rules: of the settings.
    """
    text = one_line(error)
    if isinstance(error, job.no_retry) or (isinstance(error, LonghaulError) and not error.retryable):
        return Verdict(False, True, 0.0, text)
    if is_away(error):
        return Verdict(True, False, backoff(1, rules), text)
    if (sqlstate(error) or "").startswith(_WRONG):
        return Verdict(False, True, 0.0, text)
    if not progressed and attempt >= (job.max_tries or rules.max_tries):
        return Verdict(False, True, 0.0, f"{text} (try {attempt}, the last)")
    delay = backoff(1 if progressed else attempt, rules)
    if isinstance(error, Retry) and error.after is not None:
        delay = max(0.0, error.after)
    return Verdict(True, True, delay, text)


def backoff(attempt: int, rules: WorkerSettings) -> float:
    """Return the seconds until the next try: doubling with each, with "equal jitter" (half fixed, half random).

    The formula is that of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(rules.backoff_max_seconds, rules.backoff_base_seconds * 2.0 ** min(attempt - 1, 40))
    return ceiling / 2 + random.uniform(0, ceiling / 2)  # noqa: S311 - no secret


def one_line(error: BaseException) -> str:
    """Return an error as type and message in one line; the driver's own message instead of SQLAlchemy's pages."""
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig.__cause__ or error.orig
    message = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {message}" if message else type(cause).__name__


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of an error, or None."""
    for one in _causes(error):
        found = getattr(one, "sqlstate", None)
        if isinstance(found, str):
            return found
    return None


def is_away(error: BaseException) -> bool:
    """Whether a server, not the job, is to blame."""
    if (sqlstate(error) or "").startswith(_AWAY):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return any(
        isinstance(one, PostgresConnectionError | RedisConnectionError)
        or (isinstance(one, InterfaceError) and "closed" in str(one))
        or (isinstance(one, OSError) and _raised_by_driver(one))
        for one in _causes(error)
    )


def _raised_by_driver(error: BaseException) -> bool:
    """Whether an OSError comes from the driver's own socket, and not from one that the job has opened."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("asyncpg."):
            return True
        trace = trace.tb_next
    return False


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        original = getattr(current, "orig", None)
        # What was raised while another error was handled is an error of its own: __context__ does not count.
        current = original if isinstance(original, BaseException) else current.__cause__
    return found
