"""What the durable loops of one try stand in: its run in the ledger, orders, throttles, and what becomes of failures.

`JobContext` is the face of it that a job sees; `worker.batch.loop.WalkHost` is what the loops see.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import cached_property

from worker.attempt.control import AttemptControl, JobRules
from worker.attempt.offload import OffloadedCall
from worker.batch import Progress, Walk, swallowed_error_message
from worker.batch.batch_retry import FailedBatch, RetryPlan
from worker.batch.throttle import ThrottleContext, Throttles, Wait, throttles_of
from worker.cancellation import run_to_completion
from worker.db.engine import Database
from worker.db.errors import is_transient, is_unavailable
from worker.db.sessions import roll_back
from worker.errors import (
    AttemptReleased,
    Cancelled,
    CursorMismatch,
    FencedOut,
    LonghaulError,
    PoisonBatch,
    Retry,
    UnsupportedStatement,
    UsageError,
    format_error,
)
from worker.ledger import Ledger, OwnedRun, RunSpec
from worker.settings import Settings

logger = logging.getLogger("longhaul.jobs")

_POLL_SECONDS = 0.5
#: Longest wait for a run that is just being begun in the ledger when its job is given up.
_BEGINNING_SECONDS = 5.0
#: Entries for errors that should pass and do not, until that is a failed try.
_ENTRIES_WITHOUT_PROGRESS = 12
#: Errors that no row is to blame for, and no smaller batch cures.
_NO_ROWS_FAULT = (PoisonBatch, CursorMismatch, UsageError, Retry, UnsupportedStatement)


class Attempt:
    """One try of one job, as its loops see it.

    Args:
        run_id: id of the run.
        job: name of the job.
        spec: makes the run's identity for the ledger, at the first loop.
        attempt: number of the try, from 1.
        settings: the worker's.
        database: the worker's.
        ledger: where the run is, or will be at its first loop.
        rules: of the job.
        control: the worker.
    """

    def __init__(
        self,
        *,
        run_id: str,
        job: str,
        spec: Callable[[], RunSpec],
        attempt: int,
        settings: Settings,
        database: Database,
        ledger: Ledger,
        rules: JobRules,
        control: AttemptControl,
    ) -> None:
        self.run_id = run_id
        self.job = job
        self.attempt = attempt
        self.settings = settings
        self.database = database
        self._spec = spec
        self._ledger = ledger
        self._rules = rules
        self._control = control
        self._run: OwnedRun | None = None
        self._said_done = 0
        self._loop: Walk | None = None
        self._names: set[str] = set()
        self._count = 0
        #: The batch that was open when the job raised, in words.
        self.where: str | None = None
        self.broken: str | None = None
        self.failure: FailedBatch | None = None
        self._entry: RetryPlan | None = None
        self._entries = self._batches_then = 0
        self._walks: set[str] = set()
        self.on_durable: Callable[[], None] = lambda: None
        self._given_up = False
        #: What runs for the job in threads and processes, and the loop in which that is waited for.
        self.outside: set[OffloadedCall] = set()
        self.home: asyncio.AbstractEventLoop | None = None

    @cached_property
    def _opening(self) -> asyncio.Lock:
        return asyncio.Lock()

    @cached_property
    def _throttles(self) -> Throttles:
        rules = self.settings.throttle
        # A throttle has a state of its own in each run.
        mine = [*throttles_of(rules), *(copy.copy(throttle) for throttle in self._rules.throttles)]
        return Throttles(mine, check_interval_seconds=rules.check_interval_seconds)

    @property
    def rows_done(self) -> int:
        """Rows of all committed batches of this run, in earlier tries too; or what a job without loops has said."""
        return self._run.rows if self._run else self._said_done

    @property
    def walking(self) -> bool:
        """Whether the job stands in a durable loop, which obeys orders at its next boundary."""
        return self._loop is not None

    @property
    def ledger_run(self) -> OwnedRun | None:
        """The run in the ledger; None as long as no durable loop has begun."""
        return self._run

    # --- what the loops ask of their host

    @property
    def throttled(self) -> bool:
        """Whether the walk may have to wait at a boundary: no transaction is then begun before it."""
        return self._throttles.any

    @property
    def max_attempts(self) -> int:
        """Tries without progress after which the run is dead."""
        return self._rules.max_attempts

    async def durable_run(self) -> OwnedRun:
        """Begin the run in the ledger, at the first call."""
        async with self._opening:
            self.refuse_given_up()
            if self._run is None:
                self._run = await self._ledger.begin(self._spec())
                self.attempt = self._run.attempt
                self.on_durable()
        return self._run

    async def enter_loop(self, loop: Walk) -> None:
        """Settle the loop before this one, which the job has left by `break`."""
        before = self._loop
        if before is not None and before is not loop:
            if before.in_progress:
                raise UsageError(
                    f"job {self.job}: a durable loop inside the body of another, or beside it: their batches cannot be "
                    f"in two transactions and one. Walk the join, or read the inner rows with batch.session. Where the "
                    f"other loop was left by `break`, and a generator of yours still holds it, close that first"
                )
            await before.leave()
        if self.broken is not None:
            raise LonghaulError(swallowed_error_message(self.broken))
        self._loop = loop

    def leave_loop(self, loop: Walk) -> None:
        """Forget a loop that has ended."""
        if self._loop is loop:
            self._loop = None

    def step_name(self, kind: str, name: str | None) -> str:
        """Return a name for the step that is unique in the job."""
        self._count += 1
        chosen = name or f"{self._count}-{kind}"
        if chosen in self._names:
            raise UsageError(f"job {self.job}: two loops are named {chosen!r}; a step's name is its own")
        self._names.add(chosen)
        return chosen

    def ensure_unique_statement(self, walk: str) -> None:
        """Refuse a second loop without a name over the same statement: after a restart, which is which?"""
        if walk in self._walks:
            raise UsageError(
                f"job {self.job}: two loops walk the same statement: give each a name=... that is made of what they "
                f"differ in, so that after a restart each finds its own cursor: {walk}"
            )
        self._walks.add(walk)

    async def boundary(self, *, resumable: bool, table: str) -> None:
        """Obey orders: leave for a drain or a pause, end by a cancel. Wait for what throttles the walk, and for the end
        of a pause where it cannot be gone on with elsewhere."""
        since: datetime | None = None
        while True:
            self.refuse_given_up()
            order = await self._control.order(self.run_id, self.job)
            held: Wait | None = None
            if order is None and not self._control.draining:
                held = await self._held(table)
                if held is None:
                    if since is not None:
                        self._control.throttled(self, None, since)
                    return
            await self._end_transaction()
            if order == "cancel":
                raise Cancelled("cancelled by order")
            if self._control.draining:
                raise AttemptReleased("waiting")
            if order == "pause" and resumable:
                raise AttemptReleased("paused")
            held = held or Wait("paused")
            now = datetime.now(UTC)
            since = since or now
            self._control.throttled(self, held, since)
            left = (held.until - now).total_seconds() if held.until else _POLL_SECONDS
            await asyncio.sleep(min(max(left, 0.0), _POLL_SECONDS))

    async def _end_transaction(self) -> None:
        """End what was begun for the next batch: nothing waits with a transaction open."""
        run = await self.durable_run()
        await run_to_completion(roll_back(run.driver.rollback()))

    async def _held(self, table: str) -> Wait | None:
        run = await self.durable_run()
        self._throttles.order(self._control.rows_per_second(self.run_id, self.job))
        looking = run.driver.reading() if self._throttles.ask_server else nullcontext(run.driver.raw)
        async with looking as raw:
            return await self._throttles.hold(
                ThrottleContext(raw, table, run.rows - run.rows_before, datetime.now(UTC))
            )

    def report(self, progress: Progress) -> None:
        """Tell the worker of a committed batch."""
        self._control.report(self, progress)

    # --- another entry, after a batch has failed

    def take_entry(self, step: str) -> RetryPlan | None:
        """Return how a loop is entered again, once; None where it is not."""
        entry = self._entry
        if entry is None or entry.step != step:
            return None
        self._entry = None
        return entry

    async def retry_batch(self, error: BaseException) -> bool:
        """Make the context ready for another call of the job's function, where that can cure the error.

        What will pass (a deadlock, a timeout of lock or statement) is tried again with half of the rows, down to one;
        what a row is to blame for, where its loop has a quarantine, until that row stands alone and is set aside.

        Returns:
            False where the error is the run's.
        """
        failure, run = self.failure, self._run
        if (
            self._given_up
            or failure is None
            or run is None
            or not isinstance(error, Exception)
            or is_unavailable(error)
        ):
            return False
        if isinstance(error, _NO_ROWS_FAULT):
            return False
        if run.batches != self._batches_then:
            self._entries, self._batches_then = 0, run.batches
        self._entries += 1
        if is_transient(error):
            if self._entries > _ENTRIES_WITHOUT_PROGRESS:
                return False
            entry = failure.halved()
            await asyncio.sleep(random.uniform(0.01, 0.05) * self._entries)  # noqa: S311 - no secret
        elif not failure.quarantine_limit or not run.steps[failure.step].key:
            return False
        elif failure.rows > 1:
            entry = failure.halved()
        elif await self._ledger.may_quarantine(run, failure.step, failure.quarantine_limit):
            entry = failure.without_the_row(error)
        else:
            return False
        logger.warning(
            "%s %s: step %r failed (%s): entered again with %s",
            self.job,
            self.run_id,
            failure.step,
            format_error(error),
            "the row set aside" if entry.set_aside else f"{entry.limit} rows",
        )
        self._entry = entry
        self._loop, self.where, self.broken, self.failure = None, None, None, None
        self._names, self._walks, self._count = set(), set(), 0
        return True

    # --- the end, called by whoever runs the job

    async def succeed(self) -> None:
        """Commit what the job has left open: it has returned."""
        if self._loop is not None:
            await self._loop.leave()
        if self.broken is not None:
            raise LonghaulError(swallowed_error_message(self.broken))

    async def fail(self) -> None:
        """Roll back what is open: the job has raised."""
        if self._loop is not None:
            await self._loop.fail()

    async def close(self) -> None:
        """Give the run's connection back."""
        if self._run is not None:
            await self._run.release()

    async def give_up(self) -> list[str]:
        """Refuse whatever the job does from now on: it was given up, and goes on by itself.

        The connection of its run is closed, with what it has open; nobody else may have it as long as the job's batch
        could still use it.

        Returns:
            What is to be said of it in the log.
        """
        self._given_up = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEGINNING_SECONDS), self._opening:
                pass
        if self._run is not None:
            await self._run.release(discard=True)
        return [await call.give_up() for call in list(self.outside)]

    def refuse_given_up(self) -> None:
        """Raise `FencedOut` in a job that was given up."""
        if self._given_up:
            raise FencedOut(f"run {self.run_id} was given up here: it did not end when it was interrupted")
