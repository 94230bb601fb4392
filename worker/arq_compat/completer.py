"""Writes outcomes by arq's rules: results in the codec of their payloads, hooks, and arq's counts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from arq.constants import keep_cronjob_progress
from arq.worker import JobExecutionFailed
from arq.worker import Worker as ArqWorker
from redis.exceptions import RedisError

from worker.arq_compat.codec import ArqCodec
from worker.arq_compat.executor import ArqEnded, ArqExecution, is_unique_cron
from worker.errors import format_error
from worker.queue import keys
from worker.queue.claims import Ack
from worker.queue.result import Result, result_values
from worker.runtime.completer import Completer
from worker.runtime.execution import Execution
from worker.runtime.job_completer import encode_execution_result
from worker.runtime.observer import Observer
from worker.runtime.outcome import (
    Abandoned,
    AlreadyEnded,
    Cancelled,
    Failed,
    Incomplete,
    Lost,
    Outcome,
    Rejected,
    Released,
    Snoozed,
    Succeeded,
)

logger = logging.getLogger("arq.worker")


class ArqCompleter:
    """Writes the outcomes of a worker with arq's arguments.

    Args:
        jobs: writes outcomes of `@job` functions, and requeues jobs of both kinds.
        arq: the arq worker, with its hooks and counts.
        codec: encodes results.
        acknowledge: acknowledges an ended job.
        observer: is notified of each end.
    """

    def __init__(
        self,
        jobs: Completer,
        *,
        arq: ArqWorker,
        codec: ArqCodec,
        acknowledge: Callable[[Ack], Awaitable[bool]],
        observer: Observer,
    ) -> None:
        self._jobs = jobs
        self._arq = arq
        self._codec = codec
        self._acknowledge = acknowledge
        self._observer = observer

    async def complete(self, execution: Execution, outcome: Outcome) -> None:
        """Write the outcome of an execution, between the hooks."""
        assert isinstance(execution, ArqExecution)  # noqa: S101
        inner = outcome.outcome if isinstance(outcome, Abandoned) else outcome
        if isinstance(inner, Lost):
            await self._jobs.complete(execution, outcome)
            return
        self._count(execution, inner)
        await self._call_hook(execution, "on_job_end", self._arq.on_job_end)
        if isinstance(inner, ArqEnded):
            if isinstance(outcome, Abandoned):
                words = "job abandoned job=%s run=%s reason=%s: its slot is free. %s"
                logger.error(words, *execution.labels, outcome.why, outcome.details)
            await self._end(execution, inner)
        else:
            await self._jobs.complete(execution, outcome)
        await self._call_hook(execution, "after_job_end", self._arq.after_job_end)

    async def _end(self, execution: ArqExecution, outcome: ArqEnded) -> None:
        value, success = outcome.value, outcome.state == "succeeded"
        values = make_result_values(execution, value, success=success, cancelled=outcome.state == "cancelled")
        raw = self._codec.write(values, execution.payload)
        if not await self._acknowledge(Ack(execution.claim, raw, outcome.keep_ms if raw else 0)):
            await self._jobs.complete(execution, Lost())
            return
        if is_unique_cron(execution.function):
            await self._keep_claim(execution)
        self._observer.ended(execution.info, outcome.state, error=None if success else format_error(value))

    async def _keep_claim(self, execution: ArqExecution) -> None:
        """Keep the claim of a cron job for a minute, as arq does: a worker that comes late does not run it again."""
        try:
            await self._arq.pool.set(keys.IN_PROGRESS + execution.claim.run_id, b"1", ex=keep_cronjob_progress, nx=True)
        except RedisError as error:
            logger.debug("claim of cron job %s not kept: %s", execution.claim.run_id, format_error(error))

    def _count(self, execution: ArqExecution, outcome: Outcome) -> None:
        match outcome:
            case Succeeded() | ArqEnded(state="succeeded") | AlreadyEnded(state="succeeded"):
                self._arq.jobs_complete += 1
            case ArqEnded() | Cancelled() | Incomplete() | Rejected() | AlreadyEnded():
                self._arq.jobs_failed += 1
            case Failed() if not outcome.decision.again:
                self._arq.jobs_failed += 1
            case Released() | Snoozed() | Failed() if execution.hook_ctx is not None:
                self._arq.jobs_retried += 1

    async def _call_hook(self, execution: ArqExecution, name: str, hook: Any) -> None:
        """Call a hook. An error of the hook does not prevent the end of the job."""
        if execution.hook_ctx is None or not hook:
            return
        try:
            await hook(execution.hook_ctx)
        except Exception as error:
            logger.error("%s: %s: %s", execution.name, name, format_error(error), exc_info=error)


def make_encoder(codec: ArqCodec) -> Callable[[Execution, Result, str | None], bytes]:
    """Return the encoder for results of `@job` functions, in the codec of their payloads."""

    def encode(execution: Execution, result: Result, result_json: str | None) -> bytes:
        payload = execution.payload
        if payload is None or not payload.pickled:
            return encode_execution_result(execution, result, result_json)
        value = _make_python_value(result, result_json)
        values = make_result_values(execution, value, success=result.success, cancelled=result.cancelled)
        return codec.write(values, payload) or b""

    return encode


def _make_python_value(result: Result, result_json: str | None) -> Any:
    """Return the value of a pickled result: arq's clients raise it if it is an error."""
    if result.cancelled:
        return asyncio.CancelledError(result.value)
    if not result.success:
        return JobExecutionFailed(result.value)
    return json.loads(result_json) if result_json is not None else result.value


def make_result_values(execution: Execution, value: Any, *, success: bool, cancelled: bool) -> dict[str, Any]:
    """Return a result as arq's mapping."""
    claim = execution.claim
    values = result_values(
        execution.payload,
        success=success,
        run_id=claim.run_id,
        queue=claim.queue,
        attempt=claim.attempt,
        started_ms=execution.started_ms,
    )
    values |= {"f": values["f"] or "<unknown>", "a": tuple(values["a"]), "r": value}
    return values | {"cancelled": True} if cancelled else values
