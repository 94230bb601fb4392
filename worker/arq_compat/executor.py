"""One try of a function of arq's form, `async def f(ctx: dict, ...)`, by arq's rules; and of a `@job` beside such.

arq's rules: an error ends the job at once; it is run again after `Retry`, `RetryJob` or a cancellation.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.jobs import DeserializationError
from arq.utils import args_to_string, ms_to_datetime, truncate
from arq.worker import Function, JobExecutionFailed, RetryJob
from arq.worker import Retry as ArqRetry
from arq.worker import Worker as ArqWorker

from worker.arq_compat.codec import ArqCodec
from worker.errors import InvalidArguments, InvalidPayload, Retry, format_error
from worker.job.definition import Job
from worker.queue.payload import Payload, now_ms
from worker.queue.result import Result, result_values
from worker.queue.store import Ack, Claim
from worker.runtime.completer import PAUSED_SECONDS
from worker.runtime.executor import Executor
from worker.runtime.observer import RunInfo
from worker.runtime.services import WorkerServices

logger = logging.getLogger("longhaul.jobs")

_FOR_EVER = -1


class ArqExecutor(Executor):
    """One try of one job of a worker with arq's arguments.

    Args:
        services: what it shares with the others.
        claim: the job.
        arq: has the functions, the hooks and the counts.
        codec: reads payloads, writes results.
    """

    def __init__(self, services: WorkerServices, claim: Claim, arq: ArqWorker, codec: ArqCodec) -> None:
        super().__init__(services, claim)
        self._arq = arq
        self._codec = codec
        #: What the hooks are given; None as long as the job has not begun.
        self._hook_ctx: dict[Any, Any] | None = None
        #: The function of arq's form that has begun.
        self._function: Function | CronJob | None = None
        self._ends = False

    async def _run(self) -> None:
        try:
            payload = await self._read_payload()
        except InvalidPayload as error:
            if self.claim.payload is None:
                await self._end_unbegun(JobExecutionFailed("job expired"))
            else:
                text = format_error(error)
                await self._with_redis(lambda: self.services.store.add_dead_letter(self.claim, text, job=""))
                await self._end_unbegun(DeserializationError(text))
            return
        if payload.tries is not None and payload.tries > self.claim.tries:
            tries = payload.tries
            self.claim = await self._with_redis(lambda: self.services.store.set_tries(self.claim, tries))
        if payload.function in self.services.registry:
            await self._run_job(payload)
            return
        claim = self.claim
        self._info = RunInfo(claim.run_id, payload.function, claim.queue, claim.tries, payload.enqueued_ms)
        if await self._ordered():
            return
        function = self._arq.functions.get(payload.function)
        if function is None:
            await self._end_unbegun(JobExecutionFailed(f"function {payload.function!r} not found"))
            return
        most = self._arq.max_tries if function.max_tries is None else function.max_tries
        if claim.tries > most:
            await self._end_unbegun(JobExecutionFailed(f"max {most} retries exceeded"))
            return
        await self._call(function, payload)

    async def _read_payload(self) -> Payload:
        if self.claim.payload is None:
            if not self.services.registry:
                raise InvalidPayload("expired")
            return await super()._read_payload()  # the ledger may have it
        self.payload = self._codec.read(self.claim.payload)
        return self.payload

    async def _ordered(self) -> bool:
        if self.services.orders.must_ask:
            await self.services.orders.refresh()
        order = self.services.orders.of(self.claim.run_id, self._info.job, self.claim.queue)
        if order == "cancel":
            logger.info("%s: aborted before start", self._name)
            await self._end_unbegun(asyncio.CancelledError())
        elif order == "pause":
            await self._requeue(PAUSED_SECONDS, counts=False)
            self.services.observer.left(self._info, "paused", delay=PAUSED_SECONDS)
        return order is not None

    # --- the function

    async def _call(self, function: Function | CronJob, payload: Payload) -> None:
        self.services.observer.started(self._info)
        self._hook_ctx = ctx = self._new_ctx(payload)
        limit = self._arq.job_timeout_s if function.timeout_s is None else function.timeout_s
        self._function = function
        result: Any = None
        error: BaseException | None = None
        try:
            if self._arq.on_job_start:
                await self._arq.on_job_start(ctx)
            self._say_begin(payload)
            self.deadline = None if limit is None else asyncio.get_running_loop().time() + limit
            self._body = asyncio.create_task(_guarded(function, ctx, payload))
            try:
                result = await self._body
            finally:
                self._body = None
        except asyncio.CancelledError as raised:
            this = asyncio.current_task()
            if self._reason is None and this is not None and this.cancelling():
                raise  # the worker itself is at its end
            error = TimeoutError() if self._reason == "timeout" else raised
        except Exception as raised:  # noqa: BLE001 - a job raises anything
            error = raised
        if not self._given_up:
            await self._end_call(function, result, error)

    async def _end_given_up(self) -> None:
        function = self._function
        if function is None:
            await super()._end_given_up()
            await self._after_end()
            return
        error = TimeoutError() if self._reason == "timeout" else asyncio.CancelledError()
        await self._end_call(function, None, error)

    async def _end_call(self, function: Function | CronJob, result: Any, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            await self._cancelled(function, error)
        elif isinstance(error, Exception):
            await self._failed(function, error)
        else:
            shown = "" if result is None or not self._arq.log_results else _shown(result)
            self.services.lines.info("%6.2fs ← %s ● %s", self._seconds, self._name, shown)
            await self._end_begun(function, result, state="succeeded")
        await self._after_end()

    async def _cancelled(self, function: Function | CronJob, error: asyncio.CancelledError) -> None:
        if self._reason == "lost":
            self._lost()
        elif self._reason == "cancel":
            logger.info("%6.2fs ⊘ %s aborted", self._seconds, self._name)
            await self._end_begun(function, error, state="cancelled")
        elif self._arq.retry_jobs:
            # The end of this worker costs the job no try; a job that cancels itself could go on for ever.
            await self._again(0.0, "cancelled, will be run again", counts=self._reason != "drain")
        else:
            logger.error("%6.2fs ! %s failed, CancelledError", self._seconds, self._name)
            await self._end_begun(function, error, state="dead")

    async def _failed(self, function: Function | CronJob, error: Exception) -> None:
        if self._arq.retry_jobs and isinstance(error, ArqRetry | RetryJob | Retry):
            delay = 0.0
            if isinstance(error, ArqRetry):
                delay = (error.defer_score or 0) / 1000
            elif isinstance(error, Retry):
                delay = error.after or 0.0
            await self._again(max(0.0, delay), f"retrying job in {delay:0.2f}s", counts=True)
            return
        extra = getattr(error, "extra", None)
        logger.error(
            "%6.2fs ! %s failed, %s",
            self._seconds,
            self._name,
            format_error(error),
            exc_info=error,
            extra={"extra": extra() if callable(extra) else extra},
        )
        await self._end_begun(function, error, state="dead")

    async def _again(self, delay: float, why: str, *, counts: bool) -> None:
        self.services.lines.info("%6.2fs ↻ %s %s", self._seconds, self._name, why)
        self.claim = self.claim._replace(payload=None)  # it lies there as it did, and expires when it did
        await self._requeue(delay, counts=counts)
        self.services.observer.left(self._info, "waiting", delay=delay)

    # --- its end

    async def _end_begun(self, function: Function | CronJob, value: Any, *, state: str) -> None:
        for_ever = function.keep_result_forever
        seconds = self._arq.keep_result_s if function.keep_result_s is None else function.keep_result_s
        keep_ms = _kept(self._arq.keep_result_forever if for_ever is None else for_ever, seconds)
        if isinstance(function, CronJob) and function.unique and not function.job_id and keep_ms != _FOR_EVER:
            # A stock worker that comes late enqueues a due time again, unless there is a result.
            keep_ms = max(keep_ms, keep_cronjob_progress * 1000)
        await self._end(value, keep_ms, state=state)

    async def _end_unbegun(self, error: BaseException) -> None:
        """End a job that arq's rules do not let begin."""
        cancelled = isinstance(error, asyncio.CancelledError)
        if not cancelled:
            logger.warning("%s: %s", self._name, error)
        keep_ms = _kept(self._arq.keep_result_forever, self._arq.keep_result_s)
        await self._end(error, keep_ms, state="cancelled" if cancelled else "dead")

    async def _end(self, value: Any, keep_ms: int, *, state: str) -> None:
        success = state == "succeeded"
        self._count(success)
        raw = self._codec.write(self._result(value, success=success, cancelled=state == "cancelled"), self.payload)
        await self._before_end()
        await self._tell_end(Ack(self.claim, raw, keep_ms if raw else 0))
        error = None if success else format_error(value) if str(value) else type(value).__name__
        self.services.observer.ended(self._info, state, error=error)

    def _result(self, value: Any, *, success: bool, cancelled: bool) -> dict[str, Any]:
        claim = self.claim
        values = result_values(
            self.payload,
            success=success,
            run_id=claim.run_id,
            queue=claim.queue,
            tries=claim.tries,
            started_ms=self._started_ms,
        )
        values |= {"f": values["f"] or "<unknown>", "a": tuple(values["a"]), "r": value}
        return values | {"cancelled": True} if cancelled else values

    # --- a `@job` beside arq's functions: the worker's hooks and counts are for it, too

    async def _try(self, job: Job[..., Any], payload: Payload, arguments: dict[str, Any] | InvalidArguments) -> None:
        self._hook_ctx = self._new_ctx(payload)
        try:
            if self._arq.on_job_start:
                await self._arq.on_job_start(self._hook_ctx)
        except Exception as error:  # noqa: BLE001 - it is somebody's own
            arguments = InvalidArguments(f"on_job_start: {format_error(error)}")
        await super()._try(job, payload, arguments)
        if not self._given_up:
            await self._after_end()

    async def _finish(
        self, result: Result, *, result_json: str | None = None, job: Job[..., Any] | None = None
    ) -> None:
        self._count(result.success)
        await self._before_end()
        await super()._finish(result, result_json=result_json, job=job)

    async def _requeue(self, delay: float, *, counts: bool) -> None:
        if self._hook_ctx is not None:
            self._arq.jobs_retried += 1
            await self._before_end()
        await super()._requeue(delay, counts=counts)

    def encode(self, result: Result, result_json: str | None) -> bytes:
        """Return what the result's key gets."""
        if self.payload is None or not self.payload.pickled:
            return super().encode(result, result_json)
        value = _python_value(result, result_json)
        values = self._result(value, success=result.success, cancelled=result.cancelled)
        return self._codec.write(values, self.payload) or b""

    # --- hooks

    def _new_ctx(self, payload: Payload) -> dict[Any, Any]:
        return {
            **self._arq.ctx,
            "job_id": self.claim.run_id,
            "job_try": self.claim.tries,
            "enqueue_time": ms_to_datetime(payload.enqueued_ms),
            "score": self.claim.due_ms,
        }

    async def _before_end(self) -> None:
        self._ends = True
        if self._hook_ctx is not None and self._arq.on_job_end:
            await self._hear("on_job_end", self._arq.on_job_end)

    async def _after_end(self) -> None:
        if self._hook_ctx is not None and self._ends and self._arq.after_job_end:
            await self._hear("after_job_end", self._arq.after_job_end)

    async def _hear(self, name: str, hook: Any) -> None:
        """Call a hook: what it raises does not take the job's end from it."""
        try:
            await hook(self._hook_ctx)
        except Exception as error:
            logger.error("%s: %s: %s", self._name, name, format_error(error), exc_info=error)

    def _count(self, success: bool) -> None:
        if success:
            self._arq.jobs_complete += 1
        else:
            self._arq.jobs_failed += 1

    # --- the log

    @property
    def _seconds(self) -> float:
        return (now_ms() - self._started_ms) / 1000

    def _say_begin(self, payload: Payload) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        extra = f" try={self.claim.tries}" if self.claim.tries > 1 else ""
        late = (self._started_ms - self.claim.due_ms) / 1000
        if late > 1.2 and self.claim.due_ms > 1:
            extra += f" delayed={late:0.2f}s"
        waited = (self._started_ms - payload.enqueued_ms) / 1000
        given = args_to_string(payload.args, payload.kwargs)
        self.services.lines.info("%6.2fs → %s(%s)%s", waited, self._name, given, extra)


async def _guarded(function: Function | CronJob, ctx: dict[Any, Any], payload: Payload) -> Any:
    try:
        return await function.coroutine(ctx, *payload.args, **payload.kwargs)
    except (SystemExit, KeyboardInterrupt) as error:
        raise JobExecutionFailed(f"the job raised {type(error).__name__}, which would end the worker") from error


def _python_value(result: Result, result_json: str | None) -> Any:
    """Return the value of a pickled result: arq's clients raise it if it is an error."""
    if result.cancelled:
        return asyncio.CancelledError(result.value)
    if not result.success:
        return JobExecutionFailed(result.value)
    return json.loads(result_json) if result_json is not None else result.value


def _kept(for_ever: bool | None, seconds: float | None) -> int:
    return _FOR_EVER if for_ever else round((seconds or 0) * 1000)


def _shown(result: Any) -> str:
    try:
        return truncate(repr(result))
    except Exception as error:  # noqa: BLE001 - a class's own
        return f"<{type(result).__name__}: {format_error(error)}>"


__all__ = ["ArqExecutor"]
