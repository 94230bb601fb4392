"""Claims of a run in the ledger: before the job's code runs, and at an end whose attempt does not own the run."""

from __future__ import annotations

from typing import Any

from worker.attempt.attempt import Attempt
from worker.db import errors as postgresql
from worker.errors import AlreadyFinished, HandEnded, NonRetryableError, format_error
from worker.job.definition import Job
from worker.ledger import Hand, Ledger
from worker.runtime.execution import Execution


class LedgerUnavailable(Exception):
    """PostgreSQL was unavailable at the begin of an attempt. The job's code has not run: it costs no attempt.

    Its text is that of the error of PostgreSQL, which is its cause.
    """


async def begin_attempt(execution: Execution, job: Job[..., Any], attempt: Attempt, ledger: Ledger) -> None:
    """Claim the run in the ledger, if it can be there already.

    Raises:
        AlreadyFinished: The run, or the data migration, has ended.
        HandEnded: It is a helper of a walk that has ended, or has begun another attempt.
        NonRetryableError: The run has no attempt left.
        LedgerUnavailable: PostgreSQL does not answer, or accepts no writes.
    """
    try:
        if job.rules.once and attempt.hand is None:
            await _begin_once(execution, job, attempt, ledger)
        if attempt.hand is not None:
            await _join_walk(attempt, attempt.hand)
        elif execution.may_be_in_ledger:
            await _check_earlier_attempts(execution, attempt, ledger)
    except Exception as error:
        if postgresql.is_unavailable(error):
            raise LedgerUnavailable(format_error(error)) from error
        raise


async def _begin_once(execution: Execution, job: Job[..., Any], attempt: Attempt, ledger: Ledger) -> None:
    """Begin the one run of a data migration in the ledger. One that is done does not run again."""
    if execution.claim.run_id != job.name:
        raise NonRetryableError(f"job {job.name} is a data migration: enqueue it with its name as id")
    is_done, result = await ledger.find_data_migration(job.name)
    if is_done:
        raise AlreadyFinished("succeeded", result, None)
    await attempt.durable_run()


async def _check_earlier_attempts(execution: Execution, attempt: Attempt, ledger: Ledger) -> None:
    """Take over a run that an earlier attempt may have created in the ledger."""
    claim = execution.claim
    known = await ledger.find(claim.run_id)
    if known is None:
        if claim.attempt > attempt.max_attempts:
            raise NonRetryableError(f"its worker ended at each of {claim.attempt - 1} attempts")
        return
    run = await attempt.durable_run()
    # Allow one more attempt, so that a loop can name the batch in which its workers died. If that attempt died as
    # well, it did not reach the loop.
    if run.attempt > attempt.max_attempts + 1:
        raise NonRetryableError(f"its worker ended at each of {run.attempt - 1} attempts, outside of a loop")


async def _join_walk(attempt: Attempt, hand: Hand) -> None:
    """Claim a helper run: if the walk has ended, the code does not run."""
    run = await attempt.durable_run()
    async with run.driver.reading() as raw:
        state = await run.ranges.read(raw, hand.step)
    if not state.is_open or not state.is_current:
        raise HandEnded("the walk has ended, or has other helpers")
    if run.attempt > attempt.max_attempts + 1:
        raise NonRetryableError(f"its worker ended at each of {run.attempt - 1} attempts, outside of a loop")


async def end_in_ledger(
    ledger: Ledger, execution: Execution, state: str, error: str | None, result: str | None = None
) -> None:
    """End a run that an attempt may have created in the ledger. It is taken over from any owner first."""
    payload = execution.payload
    known = await ledger.find(execution.claim.run_id)
    if payload is None or known is None or known.finished or known.job != payload.function:
        return
    run = await ledger.claim(execution.make_spec(known.arguments))
    try:
        await run.finish(state, result=result, error=error)
    finally:
        await run.close()
