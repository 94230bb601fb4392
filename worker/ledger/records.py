"""The values that the ledger takes and returns.

For a run: `RunSpec` is the identity that a worker claims; `KnownRun` is the state of an existing run; `RunRecord` is a
row of `worker runs`; `DeadRun` is a dead letter; `DeletedRun` is a run that the pruner has deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class RunSpec:
    """The identity and the payload of a run, from the queue.

    Attributes:
        id: Id of the run.
        job: Name of the job.
        queue: Name of the queue.
        payload: The payload in the queue, as JSON.
        arguments: The arguments alone, as JSON: they distinguish one call from another.
        only: The run and the step whose quarantined rows are the only ones to process, or None.
        is_new: Whether the run was enqueued again after a finished run with the same id and payload.
        in_ledger: Whether the ledger has the run already, according to its payload.
    """

    id: str
    job: str
    queue: str
    payload: str
    arguments: str = ""
    only: tuple[str, str] | None = None
    is_new: bool = False
    in_ledger: bool = False


@dataclass(frozen=True)
class KnownRun:
    """The state of an existing run in the ledger, for a worker or a command."""

    job: str
    arguments: str
    state: str
    error: str | None
    finished: bool
    payload: str
    queue: str


@dataclass(frozen=True)
class StepSpec:
    """The description of a walk, to be compared with its step in the ledger.

    Attributes:
        name: Name of the step.
        kind: Kind of the loop, e.g. chunks.
        statement: The SQL without its values.
        key: Column, type and direction of each part of the cursor; None while the source is not open.
        named: Whether the job's author has named the step, instead of the order of its loops.
    """

    name: str
    kind: str
    statement: str
    key: list[list[str]] | None
    named: bool = False


@dataclass
class StepRecord:
    """A step in the ledger; its cursor and counts move with each batch."""

    name: str
    position: int
    kind: str
    statement: str
    key: list[list[str]]
    cursor: list[Any] | None
    upper_bound: list[Any] | None
    rows: int
    batches: int
    total: int | None
    done: bool
    pace: dict[str, Any] | None = None
    code_version: str | None = None
    #: Of a recorded step, as JSON; read by `worker runs show` alone, as the times are.
    result: str | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run for `worker runs`, with the sums of its steps."""

    id: str
    job: str
    queue: str
    state: str
    owner: str | None
    attempt: int
    takeovers: int
    rows: int
    batches: int
    total: int | None
    error: str | None
    result: Any
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    steps: list[StepRecord] = field(default_factory=list)


@dataclass(frozen=True)
class DeadRun:
    """A dead run: it failed, and is not retried automatically."""

    id: str
    job: str
    queue: str
    attempt: int
    error: str | None
    traceback: str | None
    payload: str
    finished_at: datetime


@dataclass(frozen=True, order=True)
class DeletedRun:
    """A finished run that the pruner has deleted; sorts in the order of deletion."""

    finished_at: datetime
    id: str
    state: str


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that could not be processed."""

    id: int
    run_id: str
    job: str
    step: str
    key: list[Any]
    error: str
    traceback: str | None
    row: Any
    created_at: datetime
