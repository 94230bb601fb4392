"""The boundary between two batches, at which a walk applies operator commands, throttles and the worker's drain."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime

from worker.attempt.control import AttemptControl
from worker.attempt.sampler import Sampler
from worker.batch.throttle import Throttle, ThrottleContext, Throttles, Wait
from worker.batch.throttles import RowsPerSecond, make_throttles
from worker.db.engine import Database
from worker.errors import AttemptReleased, Cancelled, HandEnded
from worker.job.propagation import AttemptFields
from worker.ledger import OwnedRun
from worker.settings import ThrottleSettings

_POLL_SECONDS = 0.5
#: A run that yields is due so much later than those that wait.
_BEHIND_SECONDS = 0.005


class Boundary:
    """The boundary between two batches of the walks of one attempt.

    Args:
        job: name of the job.
        control: connects the attempt to its worker.
        throttles: throttles of the job; each attempt uses a copy, because a throttle has state.
        rules: settings of the throttles.
        sampled: the database and the attempt for the samples of what the time goes to.
        ensure_not_abandoned: raises in a job that was abandoned.

    Attributes:
        hands: number of runs that share the walk, and its pace.
        watch: called now and then during a wait; None for nothing.
    """

    def __init__(
        self,
        job: str,
        control: AttemptControl,
        throttles: Sequence[Throttle],
        rules: ThrottleSettings,
        sampled: tuple[Database, AttemptFields],
        *,
        ensure_not_abandoned: Callable[[], None],
    ) -> None:
        own = [*make_throttles(rules), *(copy.copy(throttle) for throttle in throttles)]
        self._job = job
        self._control = control
        self._throttles = Throttles(own, pace_type=RowsPerSecond, check_interval_seconds=rules.check_interval_seconds)
        self._ensure_not_abandoned = ensure_not_abandoned
        self.hands = 1
        self.watch: Callable[[], Awaitable[None]] | None = None
        self._sampler = Sampler(*sampled)
        self._rows = self._own_rows = 0

    async def wait(self, run: OwnedRun, *, resumable: bool, table: str | None) -> None:
        """Return when the next batch or step may begin.

        Args:
            run: the run in the ledger. No transaction stays open on its connection during a wait.
            resumable: whether another worker can continue from here. If not, a pause waits in this process.
            table: the walked table; None for a step, which no throttle delays.

        Raises:
            Cancelled: An operator has cancelled the run.
            HandEnded: The run is a helper, and an operator has paused or cancelled the run that it helps.
            AttemptReleased: The worker drains, an operator has paused the run, or other runs wait for its slot.
            FencedOut: The job was abandoned.
        """
        await self._sampler.begin_wait(run)
        try:
            await self._wait(run, resumable=resumable, table=table)
        except (AttemptReleased, Cancelled):
            await self._sampler.flush(run)
            raise

    async def _wait(self, run: OwnedRun, *, resumable: bool, table: str | None) -> None:
        run_id, control = run.spec.root_id, self._control
        since: datetime | None = None
        while True:
            self._ensure_not_abandoned()
            order = await control.order(run_id, self._job)
            wait: Wait | None = None
            is_yielding = False
            if order is None and not control.draining:
                wait = await self._ask_throttles(run, table)
                # Not before it has made progress: two walks would exchange a slot for ever.
                is_yielding = resumable and (wait is not None or run.has_progressed) and await control.must_yield()
                if wait is None and not is_yielding:
                    if since is not None:
                        control.throttled(None, since)
                    await self._sampler.begin_batch(run, is_walk=table is not None)
                    if table is not None:
                        control.batch_began()
                    return
            await run.roll_back()
            if order is not None and run.spec.hand is not None:
                raise HandEnded(f"an operator has given the command: {order}")
            if order == "cancel":
                raise Cancelled("cancelled by an operator")
            if control.draining:
                raise AttemptReleased("drain")
            if order == "pause" and resumable:
                raise AttemptReleased("pause")
            if is_yielding:
                raise AttemptReleased("yield", _BEHIND_SECONDS)
            wait = wait or Wait("paused", kind="paused")
            now = datetime.now(UTC)
            since = since or now
            control.throttled(wait, since)
            seconds = (wait.until - now).total_seconds() if wait.until else _POLL_SECONDS
            await asyncio.sleep(min(max(seconds, 0.0), _POLL_SECONDS))
            self._sampler.note_wait(wait.kind or wait.reason)
            if self.watch is not None:
                await self.watch()

    @property
    def rows_per_second(self) -> float | None:
        """The pace of the walk, over all hands; None without one."""
        return self._throttles.rows_per_second

    def note_wait(self, reason: str) -> None:
        """Note the time since the last note as a wait of the walk."""
        self._sampler.note_wait(reason)

    def end_walk(self, *, failed: bool) -> None:
        """Note that a walk has ended: the time that follows is not part of it."""
        self.watch, self.hands = None, 1
        self._sampler.stop()
        self._control.walk_ended(failed=failed)

    async def _ask_throttles(self, run: OwnedRun, table: str | None) -> Wait | None:
        if table is None:
            return None
        self._throttles.set_pace(self._control.rows_per_second(run.spec.root_id, self._job))
        is_due = self._throttles.is_server_check_due
        if is_due:
            await run.roll_back()  # a check sees the state of its own moment
        connection = run.driver.reading() if is_due else nullcontext(run.driver.raw)
        async with connection as raw:
            context = ThrottleContext(raw, table, self._count_rows(run), datetime.now(UTC))
            return await self._throttles.check(context)

    def _count_rows(self, run: OwnedRun) -> int:
        """Return the rows of this attempt, times the hands of a shared walk: each hand keeps to its part of a pace."""
        own = run.rows_of_attempt
        self._rows += (own - self._own_rows) * self.hands
        self._own_rows = own
        return self._rows
