"""Runs one claimed job and returns its outcome.

The executor writes nothing: `Executor.run` returns an `Outcome`, and `Completer.complete` writes it to the ledger, to
Redis and to observers.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from worker.attempt.attempt import Attempt
from worker.attempt.context import JobContext
from worker.attempt.offload import JobPools
from worker.db.engine import Database
from worker.errors import (
    AttemptExit,
    CursorMismatch,
    InvalidArguments,
    InvalidPayload,
    NonRetryableError,
    format_error,
)
from worker.job.definition import Job
from worker.job.middleware import RunHook, through
from worker.job.propagation import apply_headers
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.overview import describe_workers
from worker.queue.payload import Payload, decode_payload
from worker.queue.store import QueueStore
from worker.runtime.attempt_outcome import (
    DEADLINE,
    describe_stack,
    find_exit,
    make_cancellation_error,
    make_outcome,
)
from worker.runtime.execution import Execution
from worker.runtime.leases import Leases
from worker.runtime.limiter import Limiter, place_key
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
from worker.runtime.outcome import (
    Abandoned,
    Cancelled,
    Failed,
    Outcome,
    Rejected,
    Released,
    Succeeded,
)
from worker.runtime.server_probe import confirm_error
from worker.runtime.server_retry import ServerRetry, WorkerState
from worker.settings.model import Settings

logger = logging.getLogger("longhaul.jobs")

_UNKNOWN_SECONDS = 5.0
_LOG_AGAIN_SECONDS = 60.0


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
        registry: the jobs that this worker knows.
        database: the database for the contexts of jobs.
        ledger: the record of earlier attempts.
        store: the queue.
        limiter: concurrency and rate limits.
        leases: renews the leases and marks of running jobs.
        operator_state: the operator commands that were given before a job begins.
        observer: is notified when an attempt begins.
        log: sampled logger for lines that are written for each job.
        servers: repeats steps that failed because a server was unavailable.
        state: the state of the worker.
        pools: the threads and processes that run plain functions.
        run_hooks: middleware around each attempt, outermost first.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
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
        run_hooks: Sequence[RunHook] = (),
    ) -> None:
        self._settings = settings
        self._rules = settings.worker
        self._registry = registry
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
        self._run_hooks = tuple(run_hooks)
        #: Time of the last log line for each unknown job, by name.
        self._logged_at: dict[str, float] = {}

    def prepare(self, claim: Claim, kind: type[E] = Execution) -> E:  # type: ignore[assignment]
        """Return the execution of a claim as an instance of `kind`. Start nothing."""
        return kind(
            claim,
            rules=self._rules,
            state=self._state,
            operator_state=self._operator_state,
            observer=self._observer,
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
            payload = await self._read_payload(execution)
        except InvalidPayload as error:
            return Rejected(format_error(error))
        return await self.run_payload(execution, payload)

    async def _read_payload(self, execution: Execution) -> Payload:
        claim = execution.claim
        if claim.payload_problem is not None:
            raise InvalidPayload(claim.payload_problem)
        if claim.payload is None:
            known = await self._servers.database(lambda: self._ledger.find(claim.run_id))
            if known is None:
                raise InvalidPayload(
                    f"the queue has the id, but there is no payload at arq:job:{claim.run_id}; set it first, "
                    f"then ZADD the id"
                )
            execution.claim = claim = claim._replace(payload=known.payload.encode())
        assert claim.payload is not None  # noqa: S101
        return decode_payload(
            claim.payload, accept_pickle=self._rules.accept_pickle, max_bytes=self._rules.max_payload_bytes
        )

    async def set_payload(self, execution: Execution, payload: Payload) -> None:
        """Set the payload and the job of an execution."""
        claim = execution.claim
        execution.payload = payload
        if payload.attempt is not None and payload.attempt > claim.attempt:
            attempt = payload.attempt
            claim = await self._servers.redis(execution.name, lambda: self._store.set_attempt(execution.claim, attempt))
            execution.claim = claim
        execution.info = execution.info._replace(
            job=payload.function, attempt=claim.attempt, enqueued_ms=payload.enqueued_ms
        )

    async def run_payload(self, execution: Execution, payload: Payload) -> Outcome:
        """Run a claimed job whose payload has been read; see `run`."""
        await self.set_payload(execution, payload)
        outcome = await self.follow_order(execution) or self._check_times(execution, payload)
        if outcome is not None:
            return outcome
        job = self._registry.get(payload.function)
        if job is None:
            near = difflib.get_close_matches(payload.function, self._registry, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            text = f"unknown job {payload.function!r}: kept in the queue for a worker that knows it{hint}"
            return self._leave_to_others(execution, payload, text)
        execution.job = job
        try:
            payload, arguments = await self._decode_arguments(execution, job, payload)
        except InvalidArguments as error:  # the client validated them against another signature
            return self._leave_to_others(execution, payload, str(error))
        if job.limits is not None and not isinstance(arguments, InvalidArguments):
            given = arguments
            held = await self._servers.redis(execution.name, lambda: self._limiter.acquire(job, execution.claim, given))
            if held is not None:
                return Released(delay_seconds=held.seconds)
            execution.place = given
            if (place := place_key(job, given)) is not None:
                self._leases.keep(execution.claim.run_id, "place", place)
        if job.unique is not None and job.unique.counts == "active" and not payload.args:
            self._leases.keep(execution.claim.run_id, "unique", keys.UNIQUE + job.unique_key(payload.kwargs))
        ended = await self._attempt(execution, job, payload, arguments)
        if isinstance(ended, Failed) and isinstance(ended.error, CursorMismatch):
            return await self._leave_to_old_code(execution, payload, ended)
        return ended

    async def _leave_to_old_code(self, execution: Execution, payload: Payload, outcome: Failed) -> Outcome:
        """Release a walk to the workers whose code began it, while any of them is alive."""
        error = outcome.error
        if not isinstance(error, CursorMismatch) or error.code_version in (None, self._registry.code_version):
            return outcome
        raw = await self._servers.redis(execution.name, lambda: self._store.read_workers())
        workers = describe_workers(raw, self._settings.worker.lease_seconds, datetime.now(UTC))
        if any(one.get("code") == error.code_version and one["state"] == "running" for one in workers.values()):
            text = f"{str(error).splitlines()[0]} Returned to the queue for a worker with the code that began it."
            return self._leave_to_others(execution, payload, text)
        return outcome

    async def _decode_arguments(
        self, execution: Execution, job: Job[..., Any], payload: Payload
    ) -> tuple[Payload, dict[str, Any] | InvalidArguments]:
        """Return the payload with plain arguments, and the arguments, or the error that the attempt is to raise.

        Raises:
            InvalidArguments: the arguments are invalid here, and the client validated them against another signature.
        """
        try:
            if payload.pickled:  # convert Python values to JSON first
                plain = job.encode_arguments(payload.args, payload.kwargs)
                payload = execution.payload = payload._replace(args=[], kwargs=plain)
            arguments = job.decode_arguments(payload.args, payload.kwargs)
            if not job.codec.draws_defaults(payload.args, payload.kwargs):
                return payload, arguments
            drawn = job.encode_arguments([], arguments)
        except InvalidArguments as error:
            if payload.version not in ("", job.version):
                text = f"{error}; kept in the queue for a worker that has the signature of its client"
                raise InvalidArguments(text) from error
            return payload, error  # the attempt raises it: the ledger may have an earlier attempt
        except Exception as error:  # noqa: BLE001 - a validator of the job's author raises anything
            text = f"job {job.name}: its arguments cannot be read: {format_error(error)}"
            return payload, InvalidArguments(text)
        return await self._keep_drawn(execution, payload, drawn), arguments

    async def _keep_drawn(self, execution: Execution, payload: Payload, arguments: dict[str, Any]) -> Payload:
        """Store the values of default factories for the next attempt: a client that enqueues by name sends none."""
        payload = execution.payload = payload._replace(args=[], kwargs=arguments)
        key, text = keys.JOB + execution.claim.run_id, payload.to_json().encode()
        execution.claim = execution.claim._replace(payload=text)
        redis = self._store.redis
        await self._servers.redis(execution.name, lambda: redis.set(key, text, xx=True, keepttl=True))
        return payload

    async def follow_order(self, execution: Execution) -> Cancelled | Released | None:
        """Return the outcome of a command that was given before the job began; None if there is none."""
        order = await execution.order(execution.claim.run_id, execution.info.job)
        if order == "cancel":
            return Cancelled("cancelled by an operator before it began")
        if order == "pause":
            return Released("paused")
        return None

    def _check_times(self, execution: Execution, payload: Payload) -> Rejected | None:
        """Return the outcome of a job that has expired or missed its deadline; None otherwise."""
        now = execution.started_ms
        if 0 < payload.until_ms < now and execution.claim.attempt == 1 and not payload.in_ledger:
            late = (now - payload.until_ms) / 1000
            return Rejected(f"expired {late:.1f} s before it could begin: it was not run")
        if 0 < payload.deadline_ms < now:
            return Rejected(f"{DEADLINE}; it was not begun", may_be_in_ledger=True)
        return None

    def _leave_to_others(self, execution: Execution, payload: Payload, text: str) -> Released:
        """Return a job to the queue for workers of another version, which may know it."""
        now = time.monotonic()
        if now - self._logged_at.get(payload.function, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            self._logged_at[payload.function] = now
            logger.warning("job left in the queue job=%s run=%s: %s", *execution.labels, text)
        return Released(delay_seconds=_UNKNOWN_SECONDS, error=text)

    # --- the attempt

    async def _attempt(
        self,
        execution: Execution,
        job: Job[..., Any],
        payload: Payload,
        arguments: Mapping[str, Any] | InvalidArguments,
    ) -> Outcome:
        claim = execution.claim
        execution.attempt = attempt = Attempt(
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
        )
        enqueued_at = datetime.fromtimestamp((payload.enqueued_ms or claim.due_ms) / 1000, UTC)
        ctx = JobContext(attempt, enqueued_at=enqueued_at, headers=payload.headers, redis=self._store.redis)
        if payload.headers:
            apply_headers(payload.headers)  # into this task's own context
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
                return Succeeded(job.encode_result(await self._call(execution, job, ctx, arguments)))
            finally:
                execution.end()
        except asyncio.CancelledError:
            if execution.interrupt_reason is None and body is not None and body.cancelling():
                raise  # the worker itself was cancelled
            while execution.interrupt_reason is not None and body is not None and body.uncancel():
                pass  # the worker's own code, which follows, must not be cancelled
            return make_outcome(execution, job, make_cancellation_error(execution), self._rules)
        except BaseExceptionGroup as group:
            return make_outcome(execution, job, find_exit(group) or group, self._rules)
        except (Exception, AttemptExit) as error:  # noqa: BLE001 - a job raises anything
            confirmed = await confirm_error(error, execution.attempt, self._database, self._store.redis)
            return make_outcome(execution, job, confirmed, self._rules)

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
            if execution.claim.attempt > 1 or (execution.payload is not None and execution.payload.in_ledger):
                await self._check_earlier_attempts(execution, attempt)
            if isinstance(arguments, InvalidArguments):
                raise arguments
            if not self._run_hooks:
                return await attempt.run(job, ctx, arguments)
            return await through(self._run_hooks, ctx, partial(attempt.run, job, ctx, arguments))
        except (SystemExit, KeyboardInterrupt) as error:
            raise NonRetryableError(f"the job raised {type(error).__name__}, which would end the worker") from error

    async def _check_earlier_attempts(self, execution: Execution, attempt: Attempt) -> None:
        """Take over a run that an earlier attempt may have created in the ledger, before the job's code runs."""
        claim = execution.claim
        known = await self._ledger.find(claim.run_id)
        if known is None:
            if claim.attempt > attempt.max_attempts:
                raise NonRetryableError(f"its worker ended at each of {claim.attempt - 1} attempts")
            return
        run = await attempt.durable_run()
        # Allow one more attempt, so that a loop can name the batch in which its workers died. If that attempt died as
        # well, it did not reach the loop.
        if run.attempt > attempt.max_attempts + 1:
            raise NonRetryableError(f"its worker ended at each of {run.attempt - 1} attempts, outside of a loop")

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
