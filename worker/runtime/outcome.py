"""How the execution of one claimed job can end.

`Executor.run` returns one of these values, and `Completer.complete` writes it. They hold no connection and do nothing.

| outcome | what happened |
| --- | --- |
| `Succeeded` | the job returned |
| `Failed` | the job raised; `decision` says whether there is another attempt |
| `Snoozed` | the job raised `Snooze`: it runs again later, at the cost of no attempt |
| `Cancelled` | an operator cancelled the run |
| `Released` | the run goes back to the queue without a failure: drained, paused, over a limit, unknown here |
| `Rejected` | the run cannot begin, now or later: its payload is unreadable, or its time has passed |
| `AlreadyEnded` | the ledger knows the end of this run; it is reported again |
| `Lost` | another worker has taken the run over |
| `Abandoned` | the job's code did not end after it was interrupted; the run ends without it |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from worker.runtime.retry_policy import RetryDecision


class Outcome:
    """One of the values of this module."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Succeeded(Outcome):
    """The job returned.

    Attributes:
        result_json: what it returned, as JSON text.
    """

    result_json: str


@dataclass(frozen=True, slots=True)
class Failed(Outcome):
    """The job raised.

    Attributes:
        error: what it raised.
        decision: whether and when there is another attempt.
    """

    error: BaseException
    decision: RetryDecision


@dataclass(frozen=True, slots=True)
class Snoozed(Outcome):
    """The job asked to be run later, at the cost of no attempt.

    Attributes:
        reason: in one line.
        delay_seconds: time until it is due again.
    """

    reason: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Cancelled(Outcome):
    """An operator cancelled the run.

    Attributes:
        reason: in one line.
    """

    reason: str = "cancelled by order"


@dataclass(frozen=True, slots=True)
class Released(Outcome):
    """The run goes back to the queue without a failure.

    Attributes:
        state: what the run is from now on.
        delay_seconds: time until it is due again; a paused run is due when its order is taken back.
        error: why this worker cannot run it; None for a drain, a pause or a limit.
        counts: whether this attempt counts towards `max_attempts`.
    """

    state: Literal["waiting", "paused"] = "waiting"
    delay_seconds: float = 0.0
    error: str | None = None
    counts: bool = False


@dataclass(frozen=True, slots=True)
class Rejected(Outcome):
    """The run cannot begin, and becomes a dead letter.

    Attributes:
        error: in one line.
        may_be_in_ledger: whether an earlier attempt may have put the run into the ledger, where it then ends as well.
    """

    error: str
    may_be_in_ledger: bool = False


@dataclass(frozen=True, slots=True)
class AlreadyEnded(Outcome):
    """The ledger knows how this run ended: its worker died before Redis knew it as well.

    Attributes:
        state: succeeded, dead or cancelled.
        result: what the job returned.
        error: what it failed with, in one line.
    """

    state: str
    result: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Lost(Outcome):
    """Another worker has taken the run over; whatever was open here is rolled back."""


@dataclass(frozen=True, slots=True)
class Abandoned(Outcome):
    """The job's code did not end within its grace period; the run ends without it.

    Attributes:
        outcome: what becomes of the run.
        why: what the code was interrupted for.
        details: where the code stands, for the log.
    """

    outcome: Outcome
    why: str
    details: str
