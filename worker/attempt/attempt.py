"""`Attempt`: one attempt of one job, from its first line to the commit of its last batch.

A job uses it through `JobContext`, durable loops through `worker.batch.walk.WalkHost`, and the worker directly.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from worker.attempt.boundary import Boundary
from worker.attempt.control import AttemptControl
from worker.attempt.hands import Hands
from worker.attempt.offload import JobPools, OffloadedCall, await_offloaded
from worker.attempt.process_pool import ProcessRequest
from worker.attempt.step_names import StepNames
from worker.awaiting import TrackedCalls, tracked_calls
from worker.batch import Progress, Walk, swallowed_error_message
from worker.batch.batch_retry import BatchRetries, FailedBatch, RetryPlan
from worker.batch.throttle import Throttle
from worker.db.engine import Database
from worker.db.sessions import ScopedSession
from worker.errors import FencedOut, LonghaulError, UsageError, format_error
from worker.job.definition import Job
from worker.job.propagation import AttemptFields, current_attempt, current_headers, current_job
from worker.ledger import Hand, Ledger, OwnedRun, RunSpec
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

logger = logging.getLogger("longhaul.jobs")

_ONE_AFTER_THE_OTHER = (
    "steps and loops run one after the other; for concurrency, use asyncio.gather() inside of one step"
)
#: Longest wait for the ledger to begin the run of a job that is being abandoned.
_BEGIN_SECONDS = 5.0


class Attempt:
    """State and control of one attempt of one job.

    Args:
        run_id: id of the run.
        job: name of the job.
        number: number of the attempt, from 1.
        spec: returns the identity of the run for the ledger; called at the first durable loop.
        settings: settings of the worker.
        database: database of the worker.
        ledger: the ledger, which has the run from its first durable loop on.
        control: connects the attempt to its worker.
        pools: threads and processes for plain functions.
        max_attempts: attempts without progress until the run is dead.
        throttles: throttles of the job; each attempt uses a copy.
        accepts_statement_change: Whether a walk continues although its statement has changed.
        hand: the walk that the run helps with; None for a run of its own.

    Attributes:
        where: description of the batch that was open when the job raised; None if no batch was open.
        broken: description of the loop that an exception has ended; None if there is none.
        failure: the failed batch, to be retried; None if no batch was open.
        calls: calls that the job has to await.
        open_step: the step that is in progress; None if there is none.
        fields: run, job, attempt and step, for the log.
        has_claimed: whether it has tried to claim the run in the ledger, which may have it then.
    """

    # The state of an attempt without a loop: class attributes, because there are thousands of them a second.
    where: str | None = None
    broken: str | None = None
    failure: FailedBatch | None = None
    open_step: str | None = None
    _run: OwnedRun | None = None
    _reported_rows = 0
    _loop: Walk[Any] | None = None
    _entry: RetryPlan | None = None
    _sessions: WeakSet[ScopedSession] | None = None
    _event_loop: asyncio.AbstractEventLoop | None = None
    _is_abandoned = has_claimed = False

    def __init__(
        self,
        *,
        run_id: str,
        job: str,
        number: int,
        spec: Callable[[], RunSpec],
        settings: Settings,
        database: Database,
        ledger: Ledger,
        control: AttemptControl,
        pools: JobPools,
        max_attempts: int,
        throttles: Sequence[Throttle] = (),
        accepts_statement_change: bool = False,
        hand: Hand | None = None,
    ) -> None:
        self.run_id, self.job, self.number = run_id, job, number
        self.fields = AttemptFields(run_id, job, number, helps=None if hand is None else hand.run_id)
        self.settings = settings
        self.database = database
        self.max_attempts = max_attempts
        self.accepts_statement_change = accepts_statement_change
        self._spec = spec
        self._ledger = ledger
        self.control = control
        self._pools = pools
        self.hand = hand
        self._job_throttles = throttles
        self.calls = TrackedCalls()
        self._offloaded: set[OffloadedCall] = set()
        self._batch_retries = BatchRetries()

    @cached_property
    def names(self) -> StepNames:
        """The names of the loops and steps in this call of the job's function."""
        return StepNames(self.job)

    @cached_property
    def _opening(self) -> asyncio.Lock:
        return asyncio.Lock()

    @cached_property
    def _boundary(self) -> Boundary:
        rules, check, at = self.settings.throttle, self.ensure_not_abandoned, (self.database, self.fields)
        return Boundary(self.job, self.control, self._job_throttles, rules, at, ensure_not_abandoned=check)

    @cached_property
    def hands(self) -> Hands:
        """The helper runs of the walks of this attempt."""
        return Hands(self.control, self._boundary)

    @property
    def rows_done(self) -> int:
        """Rows of all committed batches of this run, with earlier attempts; or the progress of a job without loops."""
        return self._run.rows if self._run else self._reported_rows

    @property
    def is_walking(self) -> bool:
        """Whether the job is in a durable loop, which applies operator commands at its next boundary."""
        return self._loop is not None

    @property
    def ledger_run(self) -> OwnedRun | None:
        """The run in the ledger; None until the first durable loop begins."""
        return self._run

    # --- the job's function

    async def run(self, job: Job[..., Any], ctx: JobContext, arguments: Mapping[str, Any]) -> Any:
        """Run a job, and commit the open batch of its loops. Call the job again if that can resolve a batch's error.

        The caller ends the run in ledger and queue, and closes this attempt.

        Args:
            job: the job to run.
            ctx: its context.
            arguments: by name, in the types of its signature (see `Job.decode_arguments`).

        Returns:
            The result of the function.

        Raises:
            BaseException: The function's exception. Its open batch is rolled back.
        """
        token, fields_token = current_job.set(job.name), current_attempt.set(self.fields)
        calls_token = tracked_calls.set(self.calls)
        try:
            while True:
                try:
                    result = await self.call(job, ctx, (), arguments)
                    await self.succeed()
                except BaseException as error:
                    await self.fail()
                    if not await self.retry_batch(error):
                        raise
                else:
                    return result
        finally:
            current_job.reset(token)
            current_attempt.reset(fields_token)
            tracked_calls.reset(calls_token)

    def call(
        self, job: Job[..., Any], ctx: JobContext, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Awaitable[Any]:
        """Call a job's function in this event loop, in a thread, or in a process, as the job is declared.

        Raises:
            CancelledError: A cancellation was passed on to a thread or process, and the function let it pass.
            BaseException: The function's exception.
        """
        if job.run_in == "loop":
            return cast("Awaitable[Any]", job.function(ctx, *args, **kwargs))
        if job.run_in == "thread":
            return self.call_in_thread(partial(job.function, ctx, *args, **kwargs))
        return self._call_in_process(job, ctx, args, kwargs)

    async def _call_in_process(
        self, job: Job[..., Any], ctx: JobContext, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        request = ProcessRequest(
            module=job.function.__module__,
            function=job.function.__qualname__,
            job=job.name,
            arguments=job.encode_arguments_json(args, kwargs),
            run_id=self.run_id,
            attempt=self.number,
            enqueued_at=ctx.enqueued_at.isoformat(),
            headers={**ctx.headers, **current_headers()},
        )
        self._event_loop = asyncio.get_running_loop()
        text = await self._offload(self._pools.processes.start(request, self.settings, self.report_progress))
        return job.decode_result_json(text)

    async def call_in_thread(self, function: Callable[[], Any]) -> Any:
        """Call a plain function in a thread, in this context."""
        self._event_loop = asyncio.get_running_loop()
        return await self._offload(self._pools.threads.start(partial(contextvars.copy_context().run, function)))

    async def _offload(self, call: OffloadedCall) -> Any:
        self._offloaded.add(call)
        try:
            return await await_offloaded(call)
        finally:
            self._offloaded.discard(call)

    def report_progress(self, done: int, total: int | None = None) -> None:
        """Report the progress of a job without a durable loop; see `JobContext.progress`."""
        if self._event_loop is not None and asyncio._get_running_loop() is None:  # from a thread
            self._event_loop.call_soon_threadsafe(self.report_progress, done, total)
            return
        share = min(1.0, done / total) if total else None
        self._reported_rows = done
        self.control.report(Progress("", "job", done, total, share, 0, 0, 0.0, None), self.rows_done)

    def open_session(self) -> ScopedSession:
        """Return a new session, which cannot commit after this attempt has been abandoned."""
        self.ensure_not_abandoned()
        if self._sessions is None:
            self._sessions = WeakSet()
        session = self.database.sessions()
        self._sessions.add(session)
        return session

    async def settle_loop(self) -> None:
        """Commit the last batch of a loop that the job has exited by `break`, before another scope of the job opens.

        The batch holds locks until its commit, and the scope could wait for them forever.
        """
        loop = self._loop
        if loop is None or not loop.is_left:
            return
        if loop.was_left_by_break:
            await loop.leave()
        else:  # the job may be about to record the exception that ended the loop
            await loop.fail()

    # --- the host of durable loops, see `WalkHost`

    async def durable_run(self) -> OwnedRun:
        """Return the run in the ledger; the first call begins it."""
        async with self._opening:
            self.ensure_not_abandoned()
            if self._run is None:
                self.has_claimed = True
                self._run = await self._ledger.claim(self._spec())
                self.number = self.fields.attempt = self._run.attempt
                self.control.became_durable(self._run)
        return self._run

    async def enter_loop(self, loop: Walk[Any] | None) -> None:
        """Settle the preceding loop, which the job has exited by `break`, before a loop, or a step (None).

        Raises:
            UsageError: That loop, or a step, is still in progress.
            LonghaulError: The job has caught an exception that ended the loop.
        """
        before = self._loop
        if before is not None and before is not loop:
            if before.in_progress:
                raise UsageError(
                    f"job {self.job}: durable loops and steps cannot be nested or run concurrently in one job, because "
                    f"each batch owns the run's transaction. Walk the join, or read the inner rows with batch.session. "
                    f"If the other loop was exited by `break`, close the generator in your code that holds it"
                )
            await before.leave()
        if self.broken is not None:
            raise LonghaulError(swallowed_error_message(self.broken))
        if self.open_step is not None:
            raise UsageError(f"job {self.job}: step {self.open_step!r} is still in progress: {_ONE_AFTER_THE_OTHER}")
        self._loop = loop

    def leave_loop(self, loop: Walk[Any]) -> None:
        """Forget a loop that has ended."""
        if self._loop is loop:
            self._loop = None
            self._boundary.end_walk(failed=self.broken is not None)
            if self.broken is None:
                self.fields.step = None

    def step_name(self, kind: str, name: str | None) -> str:
        """Return the name of a step, unique in the job: the given name, or a name made from kind and order."""
        self.fields.step = self.names.add(kind, name)
        return self.fields.step

    async def boundary(self, *, resumable: bool, table: str | None) -> None:
        """Apply operator commands and throttles between two batches or steps; see `Boundary.wait`."""
        await self._boundary.wait(await self.durable_run(), resumable=resumable, table=table)

    def report(self, progress: Progress) -> None:
        """Report a committed batch to the worker."""
        run = self._run  # a helper reports its own rows, and the run those of all hands
        self.control.report(progress, run.rows_of_attempt if run and self.hand else self.rows_done)

    # --- retry of a failed batch

    def take_entry(self, step: str) -> RetryPlan | None:
        """Return the plan for retrying a step, once; None if there is no plan."""
        if self._entry is None or self._entry.step != step:
            return None
        entry, self._entry = self._entry, None
        return entry

    async def retry_batch(self, error: BaseException) -> bool:
        """Prepare another call of the job's function, if that can resolve the error of a batch; see `BatchRetries`.

        Returns:
            False if the attempt fails with the error.
        """
        failure, run = self.failure, self._run
        if self._is_abandoned or failure is None or run is None or not isinstance(error, Exception):
            return False
        entry = await self._batch_retries.decide(failure, error, run, self._ledger)
        if entry is None:
            await self._batch_retries.store_pace(failure, run, self.max_attempts)
            return False
        plan, words = entry.describe(), "batch retried: job=%s run=%s step=%r with=%s error=%s"
        logger.warning(words, self.job, self.run_id, failure.step, plan, format_error(error))
        self._entry = entry
        self._loop, self.where, self.broken, self.failure = None, None, None, None
        self.names = StepNames(self.job)
        return True

    # --- the end

    async def succeed(self) -> None:
        """Commit the open batch of a job that has returned.

        Raises:
            LonghaulError: The job has caught an exception that ended a loop.
        """
        if self._loop is not None:
            await self._loop.leave()
        if self.broken is not None:
            raise LonghaulError(swallowed_error_message(self.broken))
        if self.calls.are_pending:
            await self.calls.check_awaited()

    async def fail(self) -> None:
        """Roll back the open batch of a job that has raised."""
        self.calls.clear()
        if self._loop is not None:
            await self._loop.fail()

    async def close(self, *, discard: bool = False) -> None:
        """Release the connection of the run; see `OwnedRun.close`."""
        if self._run is not None:
            await self._run.close(discard=discard)

    async def abandon(self) -> list[str]:
        """Reject all further operations of a job that did not end when it was interrupted, and keeps running.

        Its sessions cannot commit. The connection of its run is closed, not returned to the pool, because the job's
        open batch could still use it.

        Returns:
            The outcome for its threads and processes, for the log.
        """
        self._is_abandoned = True
        for session in self._sessions or ():
            session.refuse_commit()
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEGIN_SECONDS), self._opening:
                pass
        if self._run is not None:
            await self._run.close(discard=True)
        return [await call.abandon() for call in list(self._offloaded)]

    def ensure_not_abandoned(self) -> None:
        """Raise `FencedOut` in a job that was abandoned."""
        if self._is_abandoned:
            raise FencedOut(f"run {self.run_id} was abandoned here: it did not end when it was interrupted")
