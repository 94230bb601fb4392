"""Decides whether a failed run has another attempt, and when."""

from __future__ import annotations

import random
from dataclasses import dataclass

from worker.db import errors as postgresql
from worker.errors import LonghaulError, Retry, Snooze, format_error
from worker.job.definition import Job
from worker.settings.sections import WorkerSettings

#: SQLSTATE class 42: syntax error, unknown table or column, missing privilege. Another attempt would fail as well.
_PERMANENT_SQLSTATES = ("42",)
#: Redis and the clock have no place for infinity.
_LONGEST_DELAY_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The decision about a failed run.

    Attributes:
        again: whether there is another attempt; if not, the run is dead.
        counts: whether this attempt counts towards `max_attempts`.
        delay: seconds until the next attempt.
        error: the error in one line.
    """

    again: bool
    counts: bool
    delay: float
    error: str


def decide(
    error: BaseException,
    job: Job[..., object],
    *,
    attempt: int,
    progressed: bool,
    rules: WorkerSettings,
    is_server_unavailable: bool = False,
    number: int | None = None,
) -> RetryDecision:
    """Decide whether a failed run has another attempt.

    Args:
        error: the error that the job raised.
        job: the job, for its own retry options.
        attempt: number of this attempt since the last one that committed a batch.
        progressed: whether this attempt committed a batch.
        rules: the settings of the worker.
        is_server_unavailable: whether PostgreSQL or Redis is to blame, as `worker.runtime.server_probe` has confirmed.
        number: number of this attempt among all since the run was last run again; None if it is `attempt`.
    """
    text = format_error(error)
    if job.forbids_retry(error) or (isinstance(error, LonghaulError) and not error.retryable):
        return RetryDecision(False, True, 0.0, text)
    if isinstance(error, Snooze):
        return RetryDecision(True, False, _bound(error.after or 0.0), text)
    if is_server_unavailable:
        return RetryDecision(True, False, backoff(1, rules), text)
    if (postgresql.sqlstate(error) or "").startswith(_PERMANENT_SQLSTATES):
        return RetryDecision(False, True, 0.0, text)
    if not progressed and attempt >= (job.rules.max_attempts or rules.max_attempts):
        which = f"attempt {attempt}, the last"
        if number is not None and number > attempt:
            which = f"attempt {number}, the last: {attempt} without progress"
        return RetryDecision(False, True, 0.0, f"{text} ({which})")
    delay = _delay_seconds(job, 1 if progressed else attempt, rules)
    if isinstance(error, Retry) and error.after is not None:
        delay = _bound(error.after)
    return RetryDecision(True, True, delay, text)


def _delay_seconds(job: Job[..., object], attempt: int, rules: WorkerSettings) -> float:
    """Return the seconds until the next attempt, from the job's own option or from the settings."""
    own = job.rules.backoff
    if own is None:
        return backoff(attempt, rules)
    return _bound(float(own(attempt) if callable(own) else own))


def _bound(seconds: float) -> float:
    return min(max(0.0, seconds), _LONGEST_DELAY_SECONDS)  # of NaN, max() returns 0.0


def backoff(attempt: int, rules: WorkerSettings) -> float:
    """Return the seconds until the next attempt: doubled with each, with "equal jitter" (half fixed, half random).

    The formula is that of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(rules.backoff_max_seconds, rules.backoff_base_seconds * 2.0 ** min(attempt - 1, 40))
    return ceiling / 2 + random.uniform(0, ceiling / 2)  # noqa: S311 - no secret
