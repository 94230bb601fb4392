"""What becomes of a run that failed: another try, and when; or its end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from worker.db import errors as postgresql
from worker.errors import LonghaulError, Retry, Snooze, format_error
from worker.job.definition import Job
from worker.queue import errors as redis
from worker.settings import WorkerSettings

#: Class 42: syntax, unknown table or column, missing privilege. Another try cannot cure it; a person can.
_WRONG = ("42",)


@dataclass(frozen=True)
class RetryDecision:
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


def decide(
    error: BaseException, job: Job[..., object], *, attempt: int, progressed: bool, rules: WorkerSettings
) -> RetryDecision:
    """Return what becomes of a run.

    Args:
        error: what the job raised.
        job: the job, for its own rules.
        attempt: number of this try since the last one that committed a batch.
        progressed: whether this one did.
        rules: of the settings.
    """
    text = format_error(error)
    if job.forbids_retry(error) or (isinstance(error, LonghaulError) and not error.retryable):
        return RetryDecision(False, True, 0.0, text)
    if isinstance(error, Snooze):
        return RetryDecision(True, False, max(0.0, error.after or 0.0), text)
    if postgresql.is_unavailable(error) or redis.is_unavailable(error):
        return RetryDecision(True, False, backoff(1, rules), text)
    if (postgresql.sqlstate(error) or "").startswith(_WRONG):
        return RetryDecision(False, True, 0.0, text)
    if not progressed and attempt >= (job.rules.max_attempts or rules.max_attempts):
        return RetryDecision(False, True, 0.0, f"{text} (try {attempt}, the last)")
    delay = _pause(job, 1 if progressed else attempt, rules)
    if isinstance(error, Retry) and error.after is not None:
        delay = max(0.0, error.after)
    return RetryDecision(True, True, delay, text)


def _pause(job: Job[..., object], attempt: int, rules: WorkerSettings) -> float:
    """Return the seconds until the next try, by the job's own rule or that of the settings."""
    if job.rules.backoff is None:
        return backoff(attempt, rules)
    return max(0.0, float(job.rules.backoff(attempt) if callable(job.rules.backoff) else job.rules.backoff))


def backoff(attempt: int, rules: WorkerSettings) -> float:
    """Return the seconds until the next try: doubling with each, with "equal jitter" (half fixed, half random).

    The formula is that of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(rules.backoff_max_seconds, rules.backoff_base_seconds * 2.0 ** min(attempt - 1, 40))
    return ceiling / 2 + random.uniform(0, ceiling / 2)  # noqa: S311 - no secret
