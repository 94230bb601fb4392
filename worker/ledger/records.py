"""What the ledger knows of a run and of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class RunSpec:
    """What identifies a run, from the queue."""

    id: str
    job: str
    queue: str
    payload: str  # JSON, as it lies in the queue
    arguments: str = ""  # JSON, to tell the same call from another one
    only: tuple[str, str] | None = None  # run and step whose quarantined rows alone are to be done


@dataclass(frozen=True)
class StepSpec:
    """What a loop is, to be compared with what the ledger has of it."""

    name: str
    kind: str
    statement: str
    key: list[list[str]]  # [column, type, direction] for each part
    named: bool = False  # by the job's author, and not by the order of its loops


@dataclass
class StepRecord:
    """A step as the ledger has it."""

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


@dataclass(frozen=True)
class RunRecord:
    """A run as `worker runs` shows it."""

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
    """A run that has failed for good."""

    id: str
    job: str
    queue: str
    attempt: int
    error: str | None
    traceback: str | None
    payload: str
    finished_at: datetime


@dataclass(frozen=True, order=True)
class EndedRun:
    """A run that has been forgotten; in the order in which that is done."""

    finished_at: datetime
    id: str
    state: str


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that could not be done, and was set aside."""

    id: int
    run_id: str
    job: str
    step: str
    key: list[Any]
    error: str
    traceback: str | None
    row: Any
    created_at: datetime
