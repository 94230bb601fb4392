"""What a walk asks of the attempt that it runs in, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worker.batch.batch_retry import FailedBatch, RetryPlan
from worker.db.engine import Database
from worker.ledger import OwnedRun
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.batch.walk import Walk


@dataclass(frozen=True)
class Progress:
    """How far a loop is, after a batch.

    Attributes:
        share: The part of the walk that is done, from 0 to 1, by the key's position or by rows; None if unknown.
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


class WalkHost(Protocol):
    """What a walk needs from the attempt that it runs in."""

    settings: Settings
    database: Database
    #: Whether a walk continues although its statement has changed.
    accepts_statement_change: bool
    #: The batch that failed, in words; None if none has.
    where: str | None
    #: The loop that failed, in words: a job that catches its error must not succeed.
    broken: str | None
    #: The batch that failed, for a retry in process; None if no batch was open.
    failure: FailedBatch | None

    def take_entry(self, step: str) -> RetryPlan | None:
        """Return how a loop is entered again, once; None if it is not."""

    async def durable_run(self) -> OwnedRun:
        """Return the run in the ledger, begun at the first call."""

    async def enter_loop(self, loop: Walk[Any]) -> None:
        """Settle the loop before this one; refuse one loop inside another."""

    def leave_loop(self, loop: Walk[Any]) -> None:
        """Forget a loop that has ended."""

    def step_name(self, kind: str, name: str | None) -> str:
        """Return the step's name: the given one, or one made from the order of the loops."""

    def ensure_unique_statement(self, walk: str) -> None:
        """Refuse a second loop without a name over the same statement."""

    async def boundary(self, *, resumable: bool, table: str) -> None:
        """Obey operators and throttles between two batches: raise `AttemptReleased` or `Cancelled`, or wait."""

    def report(self, progress: Progress) -> None:
        """Take note of a committed batch."""

    @property
    def max_attempts(self) -> int:
        """Attempts without progress after which the run is dead."""
