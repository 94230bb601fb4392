"""Writes the outcome of a job: to the ledger, which is authoritative, then to Redis, and then to observers.

Each step is idempotent and is repeated while its server is unavailable.

| outcome | ledger | Redis | observers |
| --- | --- | --- | --- |
| `Succeeded` | succeeded, with the result | acknowledged, with the result; the next run is enqueued | ended |
| `Incomplete` | incomplete, with the error | acknowledged, as failed; no run follows | ended |
| `Failed`, again | waiting, the attempt counts | due again after the backoff | requeued |
| `Failed`, permanently | dead | dead letter, acknowledged | ended |
| `Snoozed` | waiting | due again after the delay; no attempt is counted | requeued |
| `Cancelled` | cancelled | acknowledged | ended |
| `Released` | waiting or paused | due again after the delay; no attempt is counted | requeued |
| `Rejected` | dead, if the ledger has the run | dead letter, acknowledged | ended |
| `AlreadyEnded` | - | acknowledged, with the ledger's result | ended |
| `Lost` | - | - | lost |
| `Abandoned` | as its inner `outcome` | | |
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from worker.db.errors import sqlstate
from worker.errors import FencedOut, format_error
from worker.job.propagation import FORMER_SPAN
from worker.job.registry import Registry
from worker.ledger import Ledger, OwnedRun
from worker.ledger.text import format_traceback, loggable
from worker.queue import keys
from worker.queue.chain import make_follow_up
from worker.queue.claims import Ack, with_header
from worker.queue.payload import now_ms
from worker.queue.result import Result, encode_result
from worker.queue.store import QueueStore
from worker.runtime.execution import Execution
from worker.runtime.job_completer import ResultEncoder, encode_execution_result
from worker.runtime.leases import Leases
from worker.runtime.ledger_claims import end_in_ledger
from worker.runtime.limiter import Limiter
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
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
from worker.runtime.server_retry import ServerRetry
from worker.settings import WorkerSettings

logger = logging.getLogger("longhaul.jobs")

_PARKED_SECONDS = 3600.0
_DATA_EXCEPTION = "22"  # SQLSTATE class: e.g. NUL in a text


class Completer:
    """Writes the outcomes of all jobs of a worker.

    Args:
        rules: the `worker` section of the settings.
        registry: the jobs, for their `unique` options.
        ledger: the durable record of runs.
        store: the queue.
        acknowledge: acknowledges an ended job; its result is False if another worker has claimed the job.
        limiter: releases the places of ended jobs under their limits.
        operator_state: the operator commands, for the command that pauses a run.
        leases: stops renewing the lease of a job that is returned to the queue.
        observer: is notified of each end.
        log: sampled logger for lines that are written for each job.
        servers: repeats steps that failed because a server was unavailable.
        encode: encodes results.
    """

    def __init__(
        self,
        *,
        rules: WorkerSettings,
        registry: Registry,
        ledger: Ledger,
        store: QueueStore,
        acknowledge: Callable[[Ack], Awaitable[bool]],
        limiter: Limiter,
        leases: Leases,
        operator_state: OperatorState,
        observer: Observer,
        log: SampledLogger,
        servers: ServerRetry,
        encode: ResultEncoder = encode_execution_result,
    ) -> None:
        self._rules = rules
        self._registry = registry
        self._ledger = ledger
        self._store = store
        self._acknowledge = acknowledge
        self._limiter = limiter
        self._leases = leases
        self._operator_state = operator_state
        self._observer = observer
        self._log = log
        self._servers = servers
        self._encode = encode

    async def complete(self, execution: Execution, outcome: Outcome) -> None:
        """Write the outcome of an execution. If another worker has claimed the job, write nothing.

        Raises:
            RedisError: Redis does not answer, and the shutdown is forced.
            SQLAlchemyError: PostgreSQL does not answer. The job is claimed again when its lease expires.
        """
        try:
            await self._write(execution, outcome)
        except FencedOut:
            self._report_lost(execution)
        finally:
            if execution.place is not None:
                await self._release_place(execution)

    async def _write(self, execution: Execution, outcome: Outcome) -> None:
        match outcome:
            case Succeeded():
                await self._succeed(execution, outcome.result_json)
            case Incomplete():
                await self._end_incomplete(execution, outcome)
            case Failed() if outcome.decision.again:
                await self._retry(execution, outcome)
            case Failed():
                await self._bury(execution, outcome)
            case Snoozed():
                await self._snooze(execution, outcome)
            case Released():
                await self._release(execution, outcome)
            case Cancelled():
                await self._cancel(execution, outcome)
            case Rejected():
                await self._reject(execution, outcome)
            case AlreadyEnded():
                await self._repeat_end(execution, outcome)
            case Lost():
                self._report_lost(execution)
            case Abandoned():
                text = "job abandoned job=%s run=%s reason=%s: its slot is free, its further writes are rejected. %s"
                logger.error(text, *execution.labels, outcome.why, outcome.details)
                await self._write(execution, outcome.outcome)

    # --- the cases

    async def _succeed(self, execution: Execution, result_json: str) -> None:
        text, too_large = self._check_size(execution, result_json)
        run = _owned_run(execution)
        if run is not None:
            await self._servers.database(lambda: self._finish_with_result(execution, run, text))
        elif _has_claimed(execution):  # its code has caught the error of the claim
            await self._servers.database(lambda: end_in_ledger(self._ledger, execution, "succeeded", None, text))
        await self._end(execution, Result(True, None, too_large=too_large), result_json=text)
        self._log_end(execution, "succeeded")
        self._observer.ended(execution.info, "succeeded", result=text)

    async def _end_incomplete(self, execution: Execution, outcome: Incomplete) -> None:
        run = _owned_run(execution)
        text, _ = self._check_size(execution, outcome.result_json)
        logger.error("job incomplete job=%s run=%s error=%s", *execution.labels, outcome.error)
        if run is not None:
            await self._servers.database(lambda: run.finish("incomplete", result=text, error=outcome.error))
        elif _has_claimed(execution):
            await self._servers.database(
                lambda: end_in_ledger(self._ledger, execution, "incomplete", outcome.error, text)
            )
        await self._end(execution, Result(False, outcome.error))
        self._log_end(execution, "incomplete")
        self._observer.ended(execution.info, "incomplete", error=outcome.error)

    def _check_size(self, execution: Execution, text: str) -> tuple[str, int]:
        """Return the result to store, and the size in bytes of a result that is too large to store, else 0."""
        if 4 * len(text) <= self._rules.max_result_bytes:  # a character has at most four bytes
            return text, 0
        size = len(text.encode())
        if size <= self._rules.max_result_bytes:
            return text, 0
        words = (
            "result dropped job=%s run=%s bytes=%d: over worker.max_result_bytes; return the key of a row that has it"
        )
        logger.warning(words, *execution.labels, size)
        return "null", size

    async def _finish_with_result(self, execution: Execution, run: OwnedRun, text: str) -> None:
        try:
            await run.finish("succeeded", result=text)
        except DBAPIError as error:
            if not (sqlstate(error) or "").startswith(_DATA_EXCEPTION):
                raise
            words = "result dropped job=%s run=%s: PostgreSQL cannot store it: %s"
            logger.warning(words, *execution.labels, format_error(error))
            await run.finish("succeeded", result=None)

    async def _retry(self, execution: Execution, outcome: Failed) -> None:
        decision, run = outcome.decision, _owned_run(execution)
        text, trace = _describe(execution, outcome)
        attempt = run.attempt if run else execution.claim.attempt
        words, fields = "attempt failed job=%s run=%s attempt=%d retry_seconds=%.1f error=%s", execution.log_fields
        values = *execution.labels, attempt, decision.delay, text
        logger.warning(words, *values, exc_info=loggable(outcome.error), extra=fields)
        if run is not None:
            await self._servers.database(
                lambda: run.release("waiting", failed=decision.counts, error=text, trace=trace)
            )
        await self._requeue(execution, decision.delay, counts=decision.counts)
        self._observer.requeued(execution.info, "waiting", error=text, delay=decision.delay, how="failed")

    async def _bury(self, execution: Execution, outcome: Failed) -> None:
        run = _owned_run(execution)
        text, trace = _describe(execution, outcome)
        words, fields = "job dead job=%s run=%s error=%s", execution.log_fields
        logger.error(words, *execution.labels, text, exc_info=loggable(outcome.error), extra=fields)
        if run is not None:
            await self._servers.database(lambda: run.finish("dead", error=text, trace=trace))
        elif execution.may_be_in_ledger:
            await self._servers.database(lambda: end_in_ledger(self._ledger, execution, "dead", text))
        await self._end_dead(execution, text, trace=trace, in_ledger=run is not None)

    async def _snooze(self, execution: Execution, outcome: Snoozed) -> None:
        run = _owned_run(execution)
        words = "job snoozed job=%s run=%s seconds=%.1f reason=%s"
        self._log.info(words, *execution.labels, outcome.delay_seconds, outcome.reason)
        if run is not None:
            await self._servers.database(lambda: run.release("waiting", failed=False, error=outcome.reason))
        await self._requeue(execution, outcome.delay_seconds, counts=False)
        delay = outcome.delay_seconds
        self._observer.requeued(execution.info, "waiting", error=outcome.reason, delay=delay, how="snoozed")

    async def _release(self, execution: Execution, outcome: Released) -> None:
        run = _owned_run(execution)
        if run is not None:
            await self._servers.database(lambda: run.release(outcome.state, failed=outcome.counts))
        delay, order = outcome.delay_seconds, ""
        if outcome.state == "paused":
            claim = execution.claim
            given = claim.run_id, execution.info.job, claim.queue, execution.read_arguments
            order = self._operator_state.find_pause(*given) or ""
            # The run is due when the pause is removed; after about an hour if that notification was lost.
            delay = _PARKED_SECONDS * random.uniform(0.5, 1.5) if order else 0.0  # noqa: S311 - no secret
        how = {"counts": outcome.counts, "parked_by": order, "unknown": outcome.unknown, "line": outcome.line}
        await self._requeue(execution, delay, **how)
        if execution.attempt is not None:
            self._log_end(execution, "paused" if outcome.state == "paused" else outcome.how)
        self._observer.requeued(execution.info, outcome.state, error=outcome.error, delay=delay, how=outcome.how)

    async def _cancel(self, execution: Execution, outcome: Cancelled) -> None:
        run = _owned_run(execution)
        if run is not None:
            await self._servers.database(lambda: run.finish("cancelled", error=outcome.reason))
        elif execution.attempt is None or execution.may_be_in_ledger:
            await self._servers.database(lambda: end_in_ledger(self._ledger, execution, "cancelled", outcome.reason))
        await self._end(execution, Result(False, outcome.reason, cancelled=True))
        self._log_end(execution, "cancelled")
        self._observer.ended(execution.info, "cancelled", error=outcome.reason)

    async def _reject(self, execution: Execution, outcome: Rejected) -> None:
        words = "job rejected job=%s run=%s error=%s: moved to the dead letters (worker:dead)"
        logger.error(words, *execution.labels, outcome.error, extra=execution.log_fields)
        if outcome.may_be_in_ledger:
            await self._servers.database(lambda: end_in_ledger(self._ledger, execution, "dead", outcome.error))
        await self._end_dead(execution, outcome.error)

    async def _repeat_end(self, execution: Execution, outcome: AlreadyEnded) -> None:
        success = outcome.state == "succeeded"
        value = outcome.result if success else outcome.error
        await self._end(execution, Result(success, value, cancelled=outcome.state == "cancelled"))
        self._observer.ended(execution.info, outcome.state, error=outcome.error, result=outcome.result)

    def _report_lost(self, execution: Execution) -> None:
        logger.warning(
            "job lost job=%s run=%s: another worker has it; open transactions are rolled back", *execution.labels
        )
        self._observer.lost(execution.info)

    # --- steps

    async def _end_dead(self, execution: Execution, error: str, *, trace: str = "", in_ledger: bool = False) -> None:
        claim, job = execution.claim, execution.info.job
        add = partial(self._store.add_dead_letter, claim, error, job=job, trace=trace, in_ledger=in_ledger)
        if not execution.is_helper:  # the run that it helps ends with its error, or has continued without it
            await self._servers.redis(execution.name, add)
        await self._end(execution, Result(False, error))
        self._observer.ended(execution.info, "dead", error=error)

    async def _end(self, execution: Execution, result: Result, *, result_json: str | None = None) -> None:
        """Acknowledge the end. One script removes the job from its queue and enqueues the next run.

        Raises:
            FencedOut: the lease has expired, and another worker has claimed the job.
        """
        job, payload, claim = execution.job, execution.payload, execution.claim
        keep = self._rules.result_ttl_seconds if job is None or job.rules.result_ttl is None else job.rules.result_ttl
        keep_ms = 0 if execution.is_helper else round(keep * 1000)
        raw = self._encode(execution, result, result_json)
        next_: dict[str, Any] | None = None
        follows = payload is not None and bool(payload.next_calls or payload.group)
        if payload is not None and follows:
            text = result_json if result_json is not None else json.dumps(result.value)
            about = {"run_id": claim.run_id, "queue": claim.queue, "span": _span(execution)}
            next_ = make_follow_up(payload, success=result.success, result=text, **about)
        # A failed run keeps its lock: if an operator retries it, it must be the only run with its arguments.
        lock = self._unique_lock(execution) if result.success or result.cancelled else None
        if lock is not None:
            next_ = (next_ or {}) | {"lock": [lock, claim.run_id]}
        if not await self._acknowledge(Ack(claim, raw, keep_ms, next_)):
            raise FencedOut(claim.run_id)
        if follows and not result.success and keep_ms > 0:
            await self._publish_skipped(execution, result, keep_ms)

    def _unique_lock(self, execution: Execution) -> str | None:
        """Return the lock that a unique job holds while it is in the queue, as its client acquired it."""
        job, payload = execution.job or self._registry.get(execution.info.job), execution.payload
        if job is None or job.unique is None or job.unique.counts == "time" or payload is None or payload.args:
            return None
        return keys.UNIQUE + job.unique_key(payload.kwargs)

    async def _publish_skipped(self, execution: Execution, result: Result, keep_ms: int) -> None:
        """Write results for the skipped runs of a chain, so that clients do not wait for them."""
        payload, claim, store = execution.payload, execution.claim, self._store
        assert payload is not None  # noqa: S101
        ids = [call["id"] for call in payload.next_calls if "id" in call]
        group = payload.group
        if group is not None and await self._servers.redis(
            execution.name, lambda: store.groups.needs_success(group.group)
        ):
            ids.append(f"{group.group}:then")
        why = Result(False, f"not begun: {execution.info.job} {claim.run_id}: {result.value}", result.cancelled)
        raw = encode_result(None, why, run_id="", queue=claim.queue, attempt=0, started_ms=now_ms())
        await self._servers.redis(execution.name, lambda: store.groups.publish_skipped(ids, raw, keep_ms))

    async def _requeue(self, execution: Execution, delay: float, **how: Any) -> None:
        """Put a job back into its queue; see `QueueStore.requeue` for the arguments.

        Raises:
            FencedOut: another worker has claimed the job.
        """
        if execution.attempt is not None:
            # Close before the requeue: the next owner must not wait for locks that this connection's transaction holds.
            await execution.attempt.close()
        await self._release_place(execution)
        claim, span = execution.claim, _span(execution)
        marked = with_header(claim, FORMER_SPAN, span) if span else claim
        requeue = partial(self._store.requeue, marked, delay=delay, **how)
        if not self._leases.remove(claim) or not await self._servers.redis(execution.name, requeue):
            raise FencedOut(claim.run_id)

    async def _release_place(self, execution: Execution) -> None:
        """Release the place under the limit, once: later, another attempt of the same run may hold it."""
        arguments, execution.place = execution.place, None
        job = execution.job
        if arguments is not None and job is not None:
            self._leases.forget(execution.claim)
            await self._servers.redis(execution.name, lambda: self._limiter.release(job, execution.claim, arguments))

    def _log_end(self, execution: Execution, how: str) -> None:
        attempt = execution.attempt
        run, rows = _owned_run(execution), ""
        if attempt is not None and run is not None:
            rows = f" rows={run.rows_of_attempt if attempt.hand else attempt.rows_done}"
        text = "attempt ended job=%s run=%s state=%s seconds=%.1f%s"
        self._log.info(text, *execution.labels, how, execution.elapsed_seconds, rows)


def _owned_run(execution: Execution) -> OwnedRun | None:
    """Return the run in the ledger; None if no durable loop has begun."""
    return execution.attempt.ledger_run if execution.attempt else None


def _has_claimed(execution: Execution) -> bool:
    """Return whether the attempt has tried to claim the run, so that the ledger may have it."""
    return execution.attempt is not None and execution.attempt.has_claimed


def _span(execution: Execution) -> str:
    return execution.attempt.fields.span if execution.attempt else ""


def _describe(execution: Execution, outcome: Failed) -> tuple[str, str]:
    """Return the error of an attempt in one line, with the batch that was open, and its traceback."""
    where = execution.attempt.where if execution.attempt else None
    text = outcome.decision.error
    return f"{text} [{where}]" if where else text, format_traceback(outcome.error)
