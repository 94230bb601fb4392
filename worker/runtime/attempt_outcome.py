"""Maps the error or the cancellation of an attempt to the outcome of its run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from worker import errors
from worker.attempt.task_stack import format_task_stack
from worker.errors import (
    AttemptExit,
    AttemptReleased,
    FencedOut,
    HandEnded,
    LonghaulError,
    NonRetryableError,
    Snooze,
    StallTimeout,
)
from worker.job.definition import Job
from worker.runtime.execution import Execution
from worker.runtime.outcome import AlreadyEnded, Cancelled, Failed, Lost, Outcome, Released, Snoozed, Succeeded
from worker.runtime.retry_policy import decide
from worker.settings import WorkerSettings

DEADLINE = "its deadline has passed"


def make_outcome(
    execution: Execution,
    job: Job[..., Any],
    error: BaseException,
    rules: WorkerSettings,
    *,
    is_server_unavailable: bool = False,
) -> Outcome:
    """Return the outcome of a run whose attempt raised an error.

    Args:
        execution: the attempt.
        job: its job.
        error: the error that the job raised, or the one that its cancellation stands for.
        rules: the `worker` section of the settings.
        is_server_unavailable: whether PostgreSQL or Redis is to blame for the error.
    """
    match error:
        case errors.AlreadyFinished():
            return AlreadyEnded(error.state, error.result, error.error)
        case AttemptReleased():
            if error.reason == "pause":
                return Released("paused")
            how: Literal["released", "asleep", "yielded"] = "released"
            if error.reason != "drain":
                how = "asleep" if error.reason == "sleep" else "yielded"
            return Released("waiting", delay_seconds=error.delay_seconds, how=how)
        case errors.Cancelled():
            return Cancelled()
        case HandEnded():
            return Succeeded("null")
        case FencedOut():
            return Lost()
    run = execution.attempt.ledger_run if execution.attempt else None
    attempt = run.attempt if run else execution.claim.attempt
    progressed = run.has_progressed if run else False
    decision = decide(
        error,
        job,
        attempt=attempt,
        progressed=progressed,
        rules=rules,
        is_server_unavailable=is_server_unavailable,
        number=execution.claim.attempt,
    )
    if isinstance(error, Snooze) and decision.again:
        return Snoozed(decision.error, decision.delay)
    return Failed(error, decision)


def make_cancellation_error(execution: Execution) -> BaseException:
    """Return the error that a cancellation of the job's code stands for."""
    match execution.interrupt_reason:
        case "timeout":
            if asyncio.get_running_loop().time() >= execution.last_moment:
                return NonRetryableError(f"{DEADLINE}: cancelled")
            limit = execution.limit_seconds
            return TimeoutError(f"took longer than {limit:g} s; set @job(timeout=...) or walk in batches")
        case "stall":
            return StallTimeout("no progress for too long: cancelled, to be retried")
        case "lost":
            return FencedOut(execution.claim.run_id)
        case "drain":
            return AttemptReleased("drain")
        case "cancel":
            return errors.Cancelled("cancelled by an operator")
        case None:
            return LonghaulError("the job cancelled itself")


def find_exit(group: BaseExceptionGroup[BaseException]) -> AttemptExit | None:
    """Return the one `AttemptExit` of a group, e.g. of a job's TaskGroup; None if another error occurred, too."""
    found = [error for error in group.exceptions if not isinstance(error, BaseExceptionGroup)]
    found += [
        inner
        for each in group.exceptions
        if isinstance(each, BaseExceptionGroup)
        for inner in [find_exit(each)]
        if inner is not None
    ]
    return found[0] if len(found) == 1 and isinstance(found[0], AttemptExit) else None


def describe_stack(body: asyncio.Task[Any], inside: Callable[..., Any] | None = None) -> str:
    """Return the stack of abandoned code, for the log.

    Args:
        body: the task that runs the code.
        inside: the function whose outer frames are omitted.
    """
    return f"Stack:\n{format_task_stack(body, inside=inside)}"
