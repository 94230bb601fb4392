"""Runs functions of arq's form, `async def f(ctx: dict, ...)`, by arq's rules, and `@job` functions.

By arq's rules, an error ends the job at once. It runs again after `Retry`, `RetryJob` or a cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.jobs import DeserializationError
from arq.utils import args_to_string, ms_to_datetime, truncate
from arq.worker import Function, JobExecutionFailed, RetryJob
from arq.worker import Retry as ArqRetry
from arq.worker import Worker as ArqWorker

from worker.arq_compat.codec import ArqCodec
from worker.attempt.context import JobContext
from worker.errors import InvalidArguments, InvalidPayload, Retry, format_error
from worker.job.propagation import AttemptFields, apply_headers, current_attempt, current_trace_id
from worker.queue.claims import Claim
from worker.queue.payload import Payload
from worker.queue.store import QueueStore
from worker.runtime.attempt_outcome import describe_stack
from worker.runtime.execution import Execution
from worker.runtime.executor import Executor
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.outcome import Abandoned, Cancelled, Lost, Outcome, Released
from worker.runtime.server_retry import ServerRetry

if TYPE_CHECKING:  # it needs OpenTelemetry
    from worker.observe.tracing import RunSpans

logger = logging.getLogger("arq.worker")  # the lines have arq's form: a log configuration of arq applies

_FOR_EVER = -1


@dataclass(frozen=True)
class ArqEnded(Outcome):
    """A job has ended by arq's rules.

    Attributes:
        value: the returned value, or the error.
        keep_ms: lifetime of the result in ms; below 0 for no limit.
        state: succeeded, dead or cancelled.
    """

    value: Any
    keep_ms: int
    state: str


class ArqExecution(Execution):
    """One claimed job, and the argument of arq's hooks.

    Attributes:
        hook_ctx: the argument of the hooks; None before the job has begun.
        function: the function of arq's form, after it has begun.
    """

    __slots__ = ("function", "hook_ctx")

    hook_ctx: dict[Any, Any] | None
    function: Function | CronJob | None


class ArqHooks:
    """Builds the argument of arq's hooks, and calls `on_job_start`.

    Args:
        arq: the arq worker, with its hooks.
    """

    def __init__(self, arq: ArqWorker) -> None:
        self._arq = arq
        self._executions: WeakValueDictionary[str, ArqExecution] = WeakValueDictionary()

    def add(self, execution: ArqExecution) -> None:
        """Register an execution before its attempt."""
        self._executions[execution.claim.run_id] = execution

    async def around_attempt(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Call `on_job_start` before an attempt of a `@job` function: the outermost middleware."""
        execution = self._executions[ctx.run_id]
        assert execution.payload is not None  # noqa: S101
        try:
            await self.start(execution, execution.payload)
        except Exception as error:
            raise InvalidArguments(f"on_job_start: {format_error(error)}") from error
        return await proceed()

    async def start(self, execution: ArqExecution, payload: Payload) -> dict[Any, Any]:
        """Call `on_job_start`. Return the argument of the hooks and of the function."""
        execution.hook_ctx = ctx = {
            **self._arq.ctx,
            "job_id": execution.claim.run_id,
            "job_try": execution.claim.attempt,
            "enqueue_time": ms_to_datetime(payload.enqueued_ms),
            "score": execution.claim.due_ms,
        }
        if self._arq.on_job_start:
            await self._arq.on_job_start(ctx)
        return ctx


class ArqExecutor:
    """Runs the claimed jobs of a worker with arq's arguments.

    Args:
        jobs: runs `@job` functions, within `hooks.around_attempt`.
        hooks: the hooks around each job.
        is_known: returns whether a name is that of a `@job` function.
        has_ledger: whether the ledger may have a payload that is missing in Redis.
        arq: the arq worker, with its functions and hooks.
        codec: decodes payloads.
        store: the queue.
        observer: is notified when an attempt begins.
        spans: runs each attempt in its span; None without tracing.
        log: sampled logger for lines that are written for each job.
        servers: repeats steps that failed because a server was unavailable.
        keeps_dead_letters: whether a payload that cannot be read is kept in `worker:dead`.
    """

    def __init__(
        self,
        jobs: Executor,
        hooks: ArqHooks,
        *,
        is_known: Callable[[str], bool],
        has_ledger: bool,
        arq: ArqWorker,
        codec: ArqCodec,
        store: QueueStore,
        observer: Observer,
        spans: RunSpans | None,
        log: SampledLogger,
        servers: ServerRetry,
        keeps_dead_letters: bool = True,
    ) -> None:
        self._keeps_dead_letters = keeps_dead_letters
        self._jobs = jobs
        self._hooks = hooks
        self._is_known = is_known
        self._has_ledger = has_ledger
        self._arq = arq
        self._codec = codec
        self._store = store
        self._observer = observer
        self._spans = spans
        self._log = log
        self._servers = servers

    def prepare(self, claim: Claim) -> ArqExecution:
        """Return the execution of a claim. Start nothing."""
        execution = self._jobs.prepare(claim, ArqExecution)
        execution.hook_ctx, execution.function = None, None
        self._hooks.add(execution)
        return execution

    async def run(self, execution: Execution) -> Outcome:
        """Run a claimed job to its end."""
        assert isinstance(execution, ArqExecution)  # noqa: S101
        claim = execution.claim
        if claim.payload is None and (self._has_ledger or claim.payload_problem is not None):
            return await self._jobs.run(execution)
        if claim.payload is None:
            logger.warning("job %s expired", claim.run_id)
            return self._end_unbegun(JobExecutionFailed("job expired"))
        try:
            payload = self._codec.read(claim.payload)
        except InvalidPayload as error:
            text = format_error(error)
            if self._keeps_dead_letters:
                await self._servers.redis(execution.name, lambda: self._store.add_dead_letter(claim, text, job=""))
            logger.error("deserializing job %s failed", claim.run_id, exc_info=error)
            return self._end_unbegun(DeserializationError("unable to deserialize job"))
        if self._is_known(payload.function):
            return await self._jobs.run_payload(execution, payload)
        await self._jobs.admission.set_payload(execution, payload)
        order = await self._jobs.admission.follow_order(execution)
        if isinstance(order, Cancelled):
            logger.info("%6.2fs ⊘ %s aborted before start", _waited(execution, payload), _reference(execution))
            return self._end_unbegun(asyncio.CancelledError())
        if order is not None:
            return order
        function = self._arq.functions.get(payload.function)
        if function is None:
            logger.warning("job %s, function %r not found", claim.run_id, payload.function)
            return self._end_unbegun(JobExecutionFailed(f"function {payload.function!r} not found"))
        most = self._arq.max_tries if function.max_tries is None else function.max_tries
        if execution.claim.attempt > most:
            words = "%6.2fs ! %s max retries %d exceeded"
            reference = _reference(execution, function)
            logger.warning(words, _waited(execution, payload), reference, most)
            return self._end_unbegun(JobExecutionFailed(f"max {most} retries exceeded"), function)
        return await self._call(execution, function, payload)

    # --- the function

    async def _call(self, execution: ArqExecution, function: Function | CronJob, payload: Payload) -> Outcome:
        fields = AttemptFields(execution.claim.run_id, execution.info.job, execution.claim.attempt)
        current_attempt.set(fields)  # also for the lines about its end: this task has a context of its own
        if payload.headers:
            apply_headers(payload.headers)
            fields.trace_id = current_trace_id()
        self._observer.started(execution.info)
        execution.function = function
        proceed = partial(self._run_body, execution, function, payload)
        try:
            if self._spans is None:
                result = await proceed()
            else:
                result = await self._spans.run_attempt(proceed, headers=payload.headers, redis=self._store.redis)
        except asyncio.CancelledError as error:
            this = asyncio.current_task()
            if execution.interrupt_reason is None and this is not None and this.cancelling():
                raise  # the worker itself was cancelled
            return self._make_outcome(execution, function, error)
        except GeneratorExit:
            raise  # this coroutine itself is being closed
        except BaseException as error:  # noqa: BLE001 - a job raises anything
            return self._make_outcome(execution, function, error)
        shown = "" if result is None or not self._arq.log_results else _shown(result)
        self._log.info("%6.2fs ← %s ● %s", execution.elapsed_seconds, _reference(execution, function), shown)
        return self._end_begun(function, result, state="succeeded")

    async def _run_body(self, execution: ArqExecution, function: Function | CronJob, payload: Payload) -> Any:
        """Call `on_job_start` and the function. Return its value."""
        limit = self._arq.job_timeout_s if function.timeout_s is None else function.timeout_s
        ctx = await self._hooks.start(execution, payload)
        self._log_begin(execution, function, payload)
        body = asyncio.create_task(_guarded(function, ctx, payload))
        execution.begin(body, now=asyncio.get_running_loop().time(), limit_seconds=limit)
        try:
            return await body
        finally:
            execution.end()

    async def abandon(self, execution: Execution, body: asyncio.Task[Any]) -> Outcome:
        """End an attempt whose code did not end after an interruption."""
        assert isinstance(execution, ArqExecution)  # noqa: S101
        function = execution.function
        if function is None:
            return await self._jobs.abandon(execution, body)
        return Abandoned(
            self._make_outcome(execution, function, asyncio.CancelledError()),
            execution.interrupt_reason or "drain",
            describe_stack(body),
        )

    def _make_outcome(self, execution: ArqExecution, function: Function | CronJob, error: BaseException) -> Outcome:
        if not isinstance(error, asyncio.CancelledError):
            return self._make_failure(execution, function, error)
        seconds, name = execution.elapsed_seconds, _reference(execution, function)
        match execution.interrupt_reason:
            case "timeout":
                return self._make_failure(execution, function, TimeoutError())
            case "lost":
                return Lost()
            case "cancel":
                logger.info("%6.2fs ⊘ %s aborted", seconds, name)
                return self._end_begun(function, error, state="cancelled")
            case reason if self._arq.retry_jobs:
                # A drain of this worker does not count as an attempt. A job that cancels itself would repeat forever.
                return self._again(execution, function, 0.0, "cancelled, will be run again", counts=reason != "drain")
            case _:
                logger.error("%6.2fs ! %s failed, CancelledError: %s", seconds, name, error)
                return self._end_begun(function, error, state="dead")

    def _make_failure(self, execution: ArqExecution, function: Function | CronJob, error: BaseException) -> Outcome:
        if self._arq.retry_jobs and isinstance(error, ArqRetry | RetryJob | Retry):
            delay = 0.0
            if isinstance(error, ArqRetry):
                delay = (error.defer_score or 0) / 1000
            elif isinstance(error, Retry):
                delay = error.after or 0.0
            words = f"retrying job in {delay:0.2f}s"
            if isinstance(error, RetryJob) and not isinstance(error, ArqRetry):
                words = "cancelled, will be run again"
            return self._again(execution, function, max(0.0, delay), words, counts=True)
        try:
            extra = getattr(error, "extra", None)
            extra = extra() if callable(extra) else extra
        except Exception as failed:  # noqa: BLE001 - of the error's own class; the job ends with it, as in arq
            error, extra = failed, None
        logger.error(
            "%6.2fs ! %s failed, %s: %s",
            execution.elapsed_seconds,
            _reference(execution, function),
            type(error).__name__,
            format_error(error).partition(": ")[2],
            exc_info=error,
            extra={"extra": extra},
        )
        return self._end_begun(function, error, state="dead")

    def _again(
        self, execution: Execution, function: Function | CronJob, delay: float, why: str, *, counts: bool
    ) -> Released:
        self._log.info("%6.2fs ↻ %s %s", execution.elapsed_seconds, _reference(execution, function), why)
        execution.claim = execution.claim._replace(payload=None)  # do not rewrite the payload: it keeps its expiry
        return Released(delay_seconds=delay, counts=counts)

    # --- its end

    def _end_begun(self, function: Function | CronJob, value: Any, *, state: str) -> ArqEnded:
        for_ever = function.keep_result_forever
        seconds = self._arq.keep_result_s if function.keep_result_s is None else function.keep_result_s
        keep_ms = _kept(self._arq.keep_result_forever if for_ever is None else for_ever, seconds)
        if is_unique_cron(function) and keep_ms != _FOR_EVER:
            # A late stock worker would enqueue the due time again, unless there is a result.
            keep_ms = max(keep_ms, keep_cronjob_progress * 1000)
        return ArqEnded(value, keep_ms, state)

    def _end_unbegun(self, error: BaseException, function: Function | CronJob | None = None) -> ArqEnded:
        """End a job that must not begin by arq's rules."""
        cancelled = isinstance(error, asyncio.CancelledError)
        state = "cancelled" if cancelled else "dead"
        if function is not None:
            return self._end_begun(function, error, state=state)
        return ArqEnded(error, _kept(self._arq.keep_result_forever, self._arq.keep_result_s), state)

    def _log_begin(self, execution: Execution, function: Function | CronJob, payload: Payload) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        claim = execution.claim
        extra = f" try={claim.attempt}" if claim.attempt > 1 else ""
        late = (execution.started_ms - claim.due_ms) / 1000
        if late > 1.2 and claim.due_ms > 1:
            extra += f" delayed={late:0.2f}s"
        given = args_to_string(payload.args, payload.kwargs)
        waited, reference = _waited(execution, payload), _reference(execution, function)
        self._log.info("%6.2fs → %s(%s)%s", waited, reference, given, extra)


def is_unique_cron(function: Function | CronJob | None) -> bool:
    """Return whether a function is a cron job whose ids are made from its due times."""
    return isinstance(function, CronJob) and function.unique and not function.job_id


async def _guarded(function: Function | CronJob, ctx: dict[Any, Any], payload: Payload) -> Any:
    try:
        return await function.coroutine(ctx, *payload.args, **payload.kwargs)
    except (SystemExit, KeyboardInterrupt) as error:
        raise JobExecutionFailed(f"the job raised {type(error).__name__}, which would end the worker") from error


def _reference(execution: Execution, function: Function | CronJob | None = None) -> str:
    """Return the name of a job in arq's log lines: id and function; for a cron job the function only."""
    name = execution.info.job or "<unknown>"
    return name if isinstance(function, CronJob) else f"{execution.claim.run_id}:{name}"


def _waited(execution: Execution, payload: Payload) -> float:
    """Return the seconds between enqueueing and the claim."""
    return (execution.started_ms - payload.enqueued_ms) / 1000


def _kept(for_ever: bool | None, seconds: float | None) -> int:
    return _FOR_EVER if for_ever else round((seconds or 0) * 1000)


def _shown(result: Any) -> str:
    try:
        return truncate(repr(result))
    except Exception as error:  # noqa: BLE001 - a class's own
        return f"<{type(result).__name__}: {format_error(error)}>"
