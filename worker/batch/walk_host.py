"""The interface between a walk and the attempt that it runs in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worker.awaiting import TrackedCalls
from worker.batch.batch_retry import FailedBatch, RetryPlan
from worker.db.engine import Database
from worker.ledger import OwnedRun
from worker.ledger.records import WalkState
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.batch.walk import Walk


@dataclass(frozen=True)
class Progress:
    """The progress of a loop after a batch, or of the other hands of its walk.

    Attributes:
        share: The processed part of the walk, from 0 to 1, by the key's position or by rows; None if unknown.
        ranges: The state of a walk with several hands; None for one hand.
        is_estimate: Whether position and rows differ by far, so that the share is only a rough estimate.
        share_by: What the share is of: `position`, `ranges`, `rows` of an estimated number, or `count`, rows of a
            counted number; None if it is unknown or all.
        batches: The number of its batches; 0 in a report without a batch.
        quarantined: The number of rows that went to the quarantine since the last report.
    """

    step: str
    kind: str
    rows: int
    total: int | None
    share: float | None
    batches: int
    batch_size: int
    batch_seconds: float
    last_key: Any
    is_estimate: bool = False
    share_by: str | None = None
    ranges: WalkState | None = None
    quarantined: int = 0


class WalkHands(Protocol):
    """The helper runs of the walks of an attempt."""

    async def start(self, step: str, hands: int, fence: int) -> None:
        """Enqueue helper runs for a walk, once an attempt.

        Args:
            step: The name of the step.
            hands: The number of hands, with this run.
            fence: The fence of this attempt.
        """

    async def is_alive(self, run_id: str) -> bool:
        """Return whether a worker holds the lease of a helper run."""

    @property
    def pace(self) -> float | None:
        """The rows per second of this hand, a part of the pace of the walk; None without a pace."""

    def note(self, hands: int) -> None:
        """Record the number of hands, which share the pace of the walk."""

    def watch(self, look: Callable[[], Awaitable[None]]) -> None:
        """Call a function now and then while a throttle holds this hand, until the walk ends."""

    async def wait(self, ranges: int) -> None:
        """Wait a moment for other hands, which still walk some ranges."""

    def end_wait(self) -> None:
        """Report that the walk continues, if it has waited."""


class WalkNames(Protocol):
    """The names of the steps of one call of a job's function."""

    def add_statement(self, walk: str) -> None:
        """Raise `UsageError` for a second loop without a name over the same statement."""


class WalkHost(Protocol):
    """The operations that a walk calls on the attempt that it runs in."""

    settings: Settings
    database: Database
    #: The calls that the job has to await.
    calls: TrackedCalls
    #: Whether a walk continues although its statement has changed.
    accepts_statement_change: bool
    #: The description of the failed batch; None if no batch has failed.
    where: str | None
    #: The description of the failed loop: a job that catches its error must not succeed.
    broken: str | None
    #: The batch that failed, for a retry in process; None if no batch was open.
    failure: FailedBatch | None

    def take_entry(self, step: str) -> RetryPlan | None:
        """Return the plan for entering a loop again, once; None if there is no plan."""

    async def durable_run(self) -> OwnedRun:
        """Return the run in the ledger. The first call claims it."""

    async def enter_loop(self, loop: Walk[Any]) -> None:
        """Settle the previous loop; raise `UsageError` for a loop inside another."""

    def leave_loop(self, loop: Walk[Any]) -> None:
        """Forget a loop that has ended."""

    def step_name(self, kind: str, name: str | None) -> str:
        """Return the step's name: the given one, or a name made from the order of the loops."""

    @property
    def names(self) -> WalkNames:
        """The names of the steps of this call of the job's function."""

    async def boundary(self, *, resumable: bool, table: str | None) -> None:
        """Obey operators and throttles between two batches: raise `AttemptReleased` or `Cancelled`, or wait."""

    def report(self, progress: Progress) -> None:
        """Report a committed batch."""

    @property
    def hands(self) -> WalkHands:
        """The helper runs of the walks of this attempt."""

    @property
    def max_attempts(self) -> int:
        """Attempts without progress after which the run is dead."""
