"""The outcomes of one claimed job.

`Executor.run` returns one of these values, and `Completer.complete` writes it. They are plain data.

| outcome | what happened |
| --- | --- |
| `Succeeded` | the job returned |
| `Incomplete` | the job returned, and its `verify=` has found rows that are left undone |
| `Failed` | the job raised an error; `decision` states whether there is another attempt |
| `Snoozed` | the job raised `Snooze`: it runs again later, and no attempt is counted |
| `Cancelled` | an operator cancelled the run |
| `Released` | the run returns to the queue without a failure: drained, paused, over a limit, unknown here |
| `Rejected` | the run cannot begin, now or later: its payload is unreadable, or its time has passed |
| `AlreadyEnded` | the ledger already has the end of this run; it is reported again |
| `Lost` | another worker has taken the run over |
| `Abandoned` | the job's code did not end after an interruption; the run ends without waiting for it |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from worker.queue.store import UnknownJob
from worker.runtime.retry_policy import RetryDecision


class Outcome:
    """One of the values of this module."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Succeeded(Outcome):
    """The job returned.

    Attributes:
        result_json: the returned value, as JSON text.
    """

    result_json: str


@dataclass(frozen=True, slots=True)
class Incomplete(Outcome):
    """The job returned, and has left rows undone.

    Attributes:
        result_json: the returned value, as JSON text.
        error: the number of rows and some of their keys, in one line.
    """

    result_json: str
    error: str


@dataclass(frozen=True, slots=True)
class Failed(Outcome):
    """The job raised an error.

    Attributes:
        error: the error.
        decision: whether and when there is another attempt.
    """

    error: BaseException
    decision: RetryDecision


@dataclass(frozen=True, slots=True)
class Snoozed(Outcome):
    """The job raised `Snooze` to run again later. No attempt is counted.

    Attributes:
        reason: the reason, in one line.
        delay_seconds: seconds until it is due again.
    """

    reason: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Cancelled(Outcome):
    """An operator cancelled the run.

    Attributes:
        reason: the reason, in one line.
    """

    reason: str = "cancelled by an operator"


@dataclass(frozen=True, slots=True)
class Released(Outcome):
    """The run returns to the queue without a failure.

    Attributes:
        state: the new state of the run.
        delay_seconds: seconds until it is due again; a paused run is due when its pause is removed.
        error: the reason why this worker cannot run it; None for a drain, a pause or a limit.
        counts: whether this attempt counts towards `max_attempts`.
        unknown: its job, if this worker does not know it.
        line: the key of the line in which it waits for a place under a limit.
        how: how a job that had begun ended its attempt, for log and events.
    """

    state: Literal["waiting", "paused"] = "waiting"
    delay_seconds: float = 0.0
    error: str | None = None
    counts: bool = False
    unknown: UnknownJob | None = None
    line: str = ""
    how: Literal["released", "asleep", "yielded"] = "released"


@dataclass(frozen=True, slots=True)
class Rejected(Outcome):
    """The run cannot begin, and becomes a dead letter.

    Attributes:
        error: the error, in one line.
        may_be_in_ledger: whether the ledger may have the run from an earlier attempt; it is ended there as well.
    """

    error: str
    may_be_in_ledger: bool = False


@dataclass(frozen=True, slots=True)
class AlreadyEnded(Outcome):
    """The ledger already has the end of this run: a worker died between its write to the ledger and that to Redis.

    Attributes:
        state: succeeded, dead or cancelled.
        result: the returned value.
        error: the error of the run, in one line.
    """

    state: str
    result: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Lost(Outcome):
    """Another worker has taken over the run; open transactions of this worker are rolled back."""


@dataclass(frozen=True, slots=True)
class Abandoned(Outcome):
    """The job's code did not end within its grace period; the run ends without waiting for it.

    Attributes:
        outcome: the outcome of the run.
        why: the reason for the interruption.
        details: the stack of the code, for the log.
    """

    outcome: Outcome
    why: str
    details: str
