"""The values that the ledger takes and returns.

For a run: `RunSpec` is the identity that a worker claims; `KnownRun` is the state of an existing run; `RunRecord` is a
row of `worker runs`; `DeadRun` is a dead letter; `DeletedRun` is a run that the pruner has deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Hand:
    """The place of a helper run in the walk of another run.

    Attributes:
        run_id: Id of the run whose walk it is: the parent.
        step: Name of the step.
        number: Number of the hand; the parent itself is number 1.
        fence: Fence of the parent's attempt that has enqueued the helper. A helper of an earlier attempt ends after
            its current range.
    """

    run_id: str
    step: str
    number: int
    fence: int


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
        only_rows: Ids of the quarantined rows of `only` to process, with commas; None for all.
        is_new: Whether the run was enqueued again after a finished run with the same id and payload.
        in_ledger: Whether the ledger has the run already, according to its payload.
        hand: The walk that the run helps with; None for a run of its own.
        may_overlap: Whether another run of the job with the same arguments may walk the same table with several hands.
        is_selected: Whether the ledger has a part of its walks that an operator has selected.
        is_once: Whether the job is a data migration, whose success is remembered for ever.
    """

    id: str
    job: str
    queue: str
    payload: str
    arguments: str = ""
    only: tuple[str, str] | None = None
    is_new: bool = False
    in_ledger: bool = False
    hand: Hand | None = None
    may_overlap: bool = False
    is_once: bool = False
    is_selected: bool = False
    only_rows: str | None = None

    @property
    def root_id(self) -> str:
        """Id of the run whose rows are walked: the parent of a helper run, or the run itself."""
        return self.id if self.hand is None else self.hand.run_id


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
    ranges: int = 0
    #: Of a recorded step, as JSON; read by `worker runs show` alone, as the times are.
    result: str | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass
class RangeRecord(StepRecord):
    """A range of a step, which one hand walks as if it were a step.

    Attributes:
        number: Number of the range, from 1.
        lower: The key behind which it begins; None for the first key of the walk.
        fence: Number of the claim under which this process walks it.
        condition: The condition of its partition, in SQL; None in a table without partitions.
    """

    number: int = 0
    lower: list[Any] | None = None
    fence: int = 0
    condition: str | None = None


@dataclass(frozen=True)
class RangeBounds:
    """The keys of a range.

    Attributes:
        lower: The key behind which it begins; None for the first key of the walk.
        upper: Its last key.
        partition: Name of the partition that has these keys; None in a table without partitions.
        condition: The condition for keys of that partition, in SQL.
    """

    lower: list[Any] | None
    upper: list[Any]
    partition: str | None = None
    condition: str | None = None


@dataclass(frozen=True)
class RangeState:
    """A range of a walk, for `worker runs show`."""

    step: str
    number: int
    lower: list[Any] | None
    upper: list[Any]
    cursor: list[Any] | None
    rows: int
    batches: int
    done: bool
    owner: str | None
    error: str | None
    started_at: datetime | None
    updated_at: datetime
    partition: str | None = None


@dataclass(frozen=True)
class WalkState:
    """The state of a walk over ranges, as a hand sees it.

    Attributes:
        is_owned: Whether this process still owns its run.
        is_open: Whether the run has neither ended nor been paused, and the step has not ended.
        is_current: Whether this hand belongs to the present attempt of the run.
        ranges: Number of ranges.
        done: Number of ranges that are done.
        failed: Number of ranges whose hand has failed for good.
        hands: Number of runs that walk: this one, and those that own a range or have ended one within a second.
        rows: Rows of all ranges.
        rows_of_done: Rows of the ranges that are done.
        batches: Batches of all ranges.
        error: The error of a hand that has failed for good, with its range; None if there is none.
    """

    is_owned: bool
    is_open: bool
    is_current: bool
    ranges: int
    done: int
    failed: int
    hands: int
    rows: int
    rows_of_done: int
    batches: int
    error: str | None

    @property
    def share(self) -> float | None:
        """The part of the walk that is done, from 0 to 1: the ranges that are done, and the begun ones by their rows.

        A range has about as many rows as another: before one is done, the number of its rows is unknown.
        """
        if not self.ranges:
            return None
        if not self.rows_of_done:
            return self.done / self.ranges
        by_rows = self.rows * self.done / self.rows_of_done
        return min(max(by_rows, self.done), self.done + self.hands, self.ranges) / self.ranges


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
    parent: str | None = None
    ranges: list[RangeState] = field(default_factory=list)
    quarantined: int = 0  # counted to 1,000


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended. It began with its first attempt; its rows are those of all loops."""

    id: str
    job: str
    state: str
    attempt: int
    error: str | None
    began_at: datetime
    finished_at: datetime
    rows: int


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


@dataclass(frozen=True)
class OrderRecord:
    """An order of an operator.

    Attributes:
        id: The id of its entry in the stream `worker:orders`.
        at: The time.
        order: The order, e.g. pause.
        ordered_by: Who gave it, e.g. `cli:ada@host`, `web:deploy` or `redis-cli`.
        targets: The names to which it applies.
        details: What else belongs to it, e.g. the pace.
        number: Its number in the ledger; 0 before it is there.
    """

    id: str
    at: datetime
    order: str
    ordered_by: str
    targets: Any
    details: Any
    number: int = 0


@dataclass(frozen=True)
class MissingMigration:
    """A data migration that is not done.

    Attributes:
        name: The name of its job.
        state: The state of its run; None if the ledger has none.
        error: The error of the run, in one line.
        rows: The rows that its loops have done; None if no loop has begun.
    """

    name: str
    state: str | None
    error: str | None
    rows: int | None


@dataclass(frozen=True)
class Sample:
    """How far a step was at a moment.

    Attributes:
        step: The step.
        at: The moment.
        attempt: The number of the attempt.
        rows: The rows that were done then.
        batches: The batches that were committed then.
        seconds: The seconds since the sample before, by their reason.
    """

    step: str
    at: datetime
    attempt: int
    rows: int
    batches: int
    seconds: dict[str, float]
