"""Runs one claimed job and returns its outcome.

The executor writes nothing: `Executor.run` returns an `Outcome`, and `Completer.complete` writes it to the ledger, to
Redis and to observers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from worker.attempt.attempt import Attempt
from worker.attempt.context import JobContext
from worker.attempt.offload import JobPools
from worker.cancellation import is_current
from worker.db.engine import Database
from worker.errors import (
    CursorMismatch,
    InvalidArguments,
    InvalidPayload,
    NonRetryableError,
    format_error,
)
from worker.job.definition import Job
from worker.job.middleware import RunHook, through
from worker.job.propagation import SELECTED, apply_headers, current_attempt, current_trace_id
from worker.ledger import Hand, Ledger
from worker.plan.verify import find_undone
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.decoding import LAST_SECOND
from worker.queue.payload import Payload
from worker.queue.store import QueueStore
from worker.runtime.admission import Admission
from worker.runtime.attempt_outcome import (
    describe_stack,
    find_exit,
    make_cancellation_error,
    make_outcome,
)
from worker.runtime.execution import Execution
from worker.runtime.hands import HandRuns
from worker.runtime.leases import Leases
from worker.runtime.ledger_claims import begin_attempt
from worker.runtime.limiter import Limiter, line_key
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
from worker.runtime.outcome import (
    Abandoned,
    Failed,
    Incomplete,
    Outcome,
    Rejected,
    Released,
    Succeeded,
)
from worker.runtime.retry_policy import RetryDecision
from worker.runtime.server_probe import explain, is_server_unavailable
from worker.runtime.server_retry import ServerRetry, WorkerState
from worker.runtime.waiting_runs import WaitingRuns
from worker.settings.model import Settings

E = TypeVar("E", bound=Execution)


class JobExecutor(Protocol):
    """The protocol through which the worker runs claims: `Executor`, or the executor of another kind of job."""

    def prepare(self, claim: Claim) -> Execution:
        """Return the execution of a claim. Start nothing."""

    async def run(self, execution: Execution) -> Outcome:
        """Run a claimed job to its end."""

    async def abandon(self, execution: Execution, body: asyncio.Task[Any]) -> Outcome:
        """End an attempt whose code did not end after an interruption."""


class Executor:
    """Runs claimed jobs of `@job` functions. One executor runs all jobs of a worker.

    Args:
        settings: the settings of this process.
        admission: decides which claimed jobs may begin.
        database: the database for the contexts of jobs.
        ledger: the record of earlier attempts.
        store: the queue.
        limiter: concurrency and rate limits.
        leases: renews the leases and marks of running jobs.
        operator_state: the operator commands.
        observer: is notified when an attempt begins.
        log: sampled logger for lines that are written for each job.
        servers: repeats steps that failed because a server was unavailable.
        state: the state of the worker.
        pools: the threads and processes that run plain functions.
        waiting_runs: decides when a walk gives its slot to another run; None for never.
        run_hooks: middleware around each attempt, outermost first.

    Attributes:
        admission: the argument of the same name.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        admission: Admission,
        database: Database,
        ledger: Ledger,
        store: QueueStore,
        limiter: Limiter,
        leases: Leases,
        operator_state: OperatorState,
        observer: Observer,
        log: SampledLogger,
        servers: ServerRetry,
        state: WorkerState,
        pools: JobPools,
        waiting_runs: WaitingRuns | None = None,
        run_hooks: Sequence[RunHook] = (),
    ) -> None:
        self._settings = settings
        self._rules = settings.worker
        self.admission = admission
        self._database = database
        self._ledger = ledger
        self._store = store
        self._limiter = limiter
        self._leases = leases
        self._operator_state = operator_state
        self._observer = observer
        self._log = log
        self._servers = servers
        self._state = state
        self._pools = pools
        self._waiting_runs = waiting_runs
        self._run_hooks = tuple(run_hooks)
        self._hands = HandRuns(store)

    def prepare(self, claim: Claim, kind: type[E] = Execution) -> E:  # type: ignore[assignment]
        """Return the execution of a claim as an instance of `kind`. Start nothing."""
        return kind(
            claim,
            rules=self._rules,
            state=self._state,
            operator_state=self._operator_state,
            observer=self._observer,
            hands=self._hands,
            waiting_runs=self._waiting_runs,
        )

    async def run(self, execution: Execution) -> Outcome:
        """Run a claimed job to its end.

        Returns:
            The outcome. It is not written yet.

        Raises:
            RedisError: Redis does not answer, and the shutdown is forced.
            SQLAlchemyError: PostgreSQL does not answer.
            CancelledError: the worker itself was cancelled.
        """
        try:
            payload = await self.admission.read_payload(execution)
        except InvalidPayload as error:
            self._state.fruitless_claims += 1
            return Rejected(format_error(error))
        return await self.run_payload(execution, payload)

    async def run_payload(self, execution: Execution, payload: Payload) -> Outcome:
        """Run a claimed job whose payload has been read; see `run`."""
        admission = self.admission
        await admission.set_payload(execution, payload)
        ordered = await admission.follow_order(execution) if self._operator_state.may_have_orders else None
        outcome = ordered or admission.check_times(execution, payload)
        if outcome is not None:
            return outcome
        job = admission.find_job(execution, payload)
        if isinstance(job, Released):
            return job
        execution.job = job
        try:
            payload, arguments = await admission.decode_arguments(execution, job, payload)
        except InvalidArguments as error:  # the client validated them against another signature
            return admission.leave_to_others(execution, payload, str(error))
        if payload.hand is not None:
            return await self._attempt(execution, job, payload, arguments)  # it has the place of the run that it helps
        if self._operator_state.has_conditions(job.name):
            outcome = await admission.follow_order(execution)  # now by the arguments, too
            if outcome is not None:
                return outcome
        if (job.limits or job.name in self._operator_state.limited) and not isinstance(arguments, InvalidArguments):
            given = arguments
            held = await self._servers.redis(execution.name, lambda: self._limiter.acquire(job, execution.claim, given))
            if held is not None:
                return Released(delay_seconds=held.seconds, line=line_key(job, given) if held.why == "limit" else "")
            execution.place = given
            if (place := self._limiter.place_of(execution.claim)) is not None:
                self._leases.keep(execution.claim, "place", place)
        if job.unique is not None and job.unique.counts == "active" and not payload.args:
            self._leases.keep(execution.claim, "unique", keys.UNIQUE + job.unique_key(payload.kwargs))
        ended = await self._attempt(execution, job, payload, arguments)
        if isinstance(ended, Failed) and isinstance(ended.error, CursorMismatch):
            return await admission.leave_to_old_code(execution, payload, ended)
        return ended

    # --- the attempt

    async def _attempt(
        self,
        execution: Execution,
        job: Job[..., Any],
        payload: Payload,
        arguments: Mapping[str, Any] | InvalidArguments,
    ) -> Outcome:
        claim = execution.claim
        execution.attempt = attempt = self._make_attempt(execution, job, payload)
        current_attempt.set(attempt.fields)  # also for the lines about its end: this task has a context of its own
        enqueued_ms = payload.enqueued_ms or claim.due_ms
        if not 0 <= enqueued_ms < LAST_SECOND * 1000:
            enqueued_ms = 0  # another client has enqueued it with any number as its due time
        ctx = JobContext(attempt, enqueued_ms=enqueued_ms, headers=payload.headers, redis=self._store.redis)
        if payload.headers:
            apply_headers(payload.headers)  # into this task's own context
            attempt.fields.trace_id = current_trace_id()
        self._observer.started(execution.info)
        self._log.info("attempt started job=%s run=%s attempt=%d", *execution.labels, claim.attempt)
        body = asyncio.current_task()
        execution.begin(
            body,
            now=asyncio.get_running_loop().time(),
            limit_seconds=job.rules.timeout or self._rules.job_timeout_seconds,
        )
        try:
            try:
                text = job.encode_result(await self._call(execution, job, ctx, arguments))
                if body is not None and body.cancelling():
                    await asyncio.sleep(0)  # a task that has cancelled itself gets that at its next await
                return await self._verify(execution, job, arguments, text)
            finally:
                execution.end()
        except asyncio.CancelledError:
            if (
                execution.interrupt_reason is None
                and body is not None
                and body.cancelling()
                and self._state.is_cancelled
            ):
                raise  # the worker itself was cancelled
            while body is not None and body.uncancel():
                pass  # the worker's own code, which follows, must not be cancelled
            return make_outcome(execution, job, make_cancellation_error(execution), self._rules)
        except GeneratorExit as error:
            if not is_current(body):
                raise  # this coroutine itself is being closed
            return await self._fail(execution, job, error)
        except BaseException as error:  # noqa: BLE001 - a job raises anything
            return await self._fail(execution, job, error)

    def _make_attempt(self, execution: Execution, job: Job[..., Any], payload: Payload) -> Attempt:
        claim = execution.claim
        return Attempt(
            run_id=claim.run_id,
            job=payload.function,
            number=claim.attempt,
            spec=execution.make_spec,
            settings=self._settings,
            database=self._database,
            ledger=self._ledger,
            control=execution,
            pools=self._pools,
            max_attempts=job.rules.max_attempts or self._rules.max_attempts,
            throttles=job.throttles,
            accepts_statement_change=job.rules.on_statement_change == "continue",
            hand=None if payload.hand is None else Hand(*payload.hand),
        )

    async def _verify(
        self, execution: Execution, job: Job[..., Any], arguments: Mapping[str, Any] | InvalidArguments, text: str
    ) -> Outcome:
        """Return the outcome of a job that has returned: its `verify=` may find rows that are left undone."""
        if job.rules.verify is None or isinstance(arguments, InvalidArguments):
            return Succeeded(text)
        is_part = execution.payload is not None and SELECTED in execution.payload.headers
        if execution.is_helper or is_part:
            return Succeeded(text)
        undone = await find_undone(self._database, job, arguments)
        return Succeeded(text) if undone is None else Incomplete(text, undone.describe())

    async def _fail(self, execution: Execution, job: Job[..., Any], raised: BaseException) -> Outcome:
        """Return the outcome of an attempt that has raised. Only an unavailable server costs no attempt.

        An error that cannot be handled, such as one of a job's `backoff=` function, ends the run: left to its lease,
        the run would be claimed again and again.
        """
        try:
            error = (find_exit(raised) if isinstance(raised, BaseExceptionGroup) else None) or raised
            is_away = await is_server_unavailable(error, self._database, self._store.redis)
            if not is_away and not job.forbids_retry(error):  # its class counts, which `explain` replaces
                error = explain(error, execution.attempt, self._database)
            return make_outcome(execution, job, error, self._rules, is_server_unavailable=is_away)
        except Exception as failed:  # noqa: BLE001 - classes and functions of the application raise anything
            text = f"the job raised {type(raised).__name__}, which cannot be handled: {format_error(failed)}"
            unhandled = NonRetryableError(text)
            return Failed(unhandled, RetryDecision(again=False, counts=True, delay=0.0, error=format_error(unhandled)))

    async def _call(
        self,
        execution: Execution,
        job: Job[..., Any],
        ctx: JobContext,
        arguments: Mapping[str, Any] | InvalidArguments,
    ) -> Any:
        attempt = execution.attempt
        assert attempt is not None  # noqa: S101
        try:
            await begin_attempt(execution, job, attempt, self._ledger)
            if isinstance(arguments, InvalidArguments):
                raise arguments
            if not self._run_hooks:
                return await attempt.run(job, ctx, arguments)
            return await through(self._run_hooks, ctx, partial(attempt.run, job, ctx, arguments))
        except (SystemExit, KeyboardInterrupt) as error:
            raise NonRetryableError(f"the job raised {type(error).__name__}, which would end the worker") from error

    # --- abandoned code

    async def abandon(self, execution: Execution, body: asyncio.Task[Any]) -> Outcome:
        """End an attempt whose code did not end, and close the connection of its run.

        Args:
            execution: the execution, already abandoned (`Execution.abandon`).
            body: the task that runs the code.
        """
        job, attempt = execution.job, execution.attempt
        assert job is not None  # noqa: S101
        assert attempt is not None  # noqa: S101
        offloaded = await attempt.abandon()
        # If the job runs in a thread or a process, log the stack of that.
        stack = [] if job.run_in != "loop" else [describe_stack(body, inside=job.function)]
        details = "".join([*offloaded, *stack])
        error = make_cancellation_error(execution)
        reason = execution.interrupt_reason
        if isinstance(error, TimeoutError) and reason is not None:
            error = TimeoutError(f"{error}; it did not end within {execution.grace_seconds:g} s of that: abandoned")
        return Abandoned(
            make_outcome(execution, job, error, self._rules),
            reason or "drain",
            details,
        )
