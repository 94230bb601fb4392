"""Decides whether a claimed job may begin on this worker: reads its payload, its times, its job and its arguments."""

from __future__ import annotations

import difflib
import logging
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from worker.errors import CursorMismatch, InvalidArguments, InvalidPayload, format_error
from worker.job.definition import Job
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.overview import describe_workers
from worker.queue.payload import Payload, decode_payload
from worker.queue.store import QueueStore, UnknownJob
from worker.runtime.attempt_outcome import DEADLINE
from worker.runtime.execution import Execution
from worker.runtime.observer import RunInfo
from worker.runtime.outcome import Cancelled, Failed, Outcome, Rejected, Released
from worker.runtime.server_retry import ServerRetry
from worker.settings.sections import WorkerSettings

logger = logging.getLogger("longhaul.jobs")

#: Delay of a job that is returned to the queue for another worker.
_LEFT_SECONDS = 5.0
#: Shortest time between two log lines about one job that is returned to the queue.
_LOG_AGAIN_SECONDS = 60.0
_MOST_NAMES = 1_000


class Admission:
    """Reads claimed jobs, and decides whether they may begin. One admission serves all jobs of a worker.

    Args:
        rules: the worker's settings.
        registry: the jobs that this worker knows.
        ledger: the source of a payload that is no longer in Redis.
        store: the queue.
        servers: repeats steps that failed because a server was unavailable.
    """

    def __init__(
        self, *, rules: WorkerSettings, registry: Registry, ledger: Ledger, store: QueueStore, servers: ServerRetry
    ) -> None:
        self._rules = rules
        self._registry = registry
        self._ledger = ledger
        self._store = store
        self._servers = servers
        #: Time of the last log line for each job that was returned to the queue, by name.
        self._logged_at: dict[str, float] = {}

    # --- the payload

    async def read_payload(self, execution: Execution) -> Payload:
        """Return the payload of a claim: from Redis, or from the ledger if Redis has none.

        Raises:
            InvalidPayload: There is no payload, or it cannot be read.
        """
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
        helps = "" if payload.hand is None else payload.hand.run_id
        execution.info = RunInfo(
            claim.run_id,
            payload.function,
            claim.queue,
            claim.attempt,
            payload.enqueued_ms,
            helps,
            claim.due_ms,
            claim.expired,
        )

    # --- commands and times

    async def follow_order(self, execution: Execution) -> Cancelled | Released | None:
        """Return the outcome of a command that was given before the job began; None if there is none."""
        hand = None if execution.payload is None else execution.payload.hand
        asked = execution.claim.run_id if hand is None else hand.run_id
        order = await execution.order(asked, execution.info.job)
        if order is not None and hand is not None:  # the run that it helps enqueues other helpers when it continues
            return Cancelled(f"the run that it helps has the command: {order}")
        if order == "cancel":
            return Cancelled("cancelled by an operator while it waited")
        if order == "pause":
            self._servers.state.fruitless_claims += 1
            return Released("paused")
        return None

    def check_times(self, execution: Execution, payload: Payload) -> Rejected | None:
        """Return the outcome of a job that has expired or missed its deadline; None otherwise."""
        now = execution.started_ms
        if 0 < payload.until_ms < now and execution.claim.attempt == 1 and not payload.in_ledger:
            late = (now - payload.until_ms) / 1000
            return Rejected(f"expired {late:.1f} s before it could begin: it was not run")
        if 0 < payload.deadline_ms < now:
            return Rejected(f"{DEADLINE}; it was not begun", may_be_in_ledger=True)
        return None

    # --- the job and its arguments

    def find_job(self, execution: Execution, payload: Payload) -> Job[..., Any] | Released:
        """Return the job that a payload names; the outcome if this worker does not know it."""
        job: Job[..., Any] | None = self._registry.get(payload.function)
        if job is not None:
            return job
        near = difflib.get_close_matches(payload.function, self._registry, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        text = f"unknown job {payload.function!r}: kept in the queue for a worker that knows it{hint}"
        now = execution.started_ms
        ends = [moment for moment in (payload.until_ms, payload.deadline_ms) if moment > now]
        longest = (min(ends) - now) / 1000 if ends else math.inf
        unknown = UnknownJob(payload.function, longest)
        return replace(self.leave_to_others(execution, payload, text), unknown=unknown)

    async def decode_arguments(
        self, execution: Execution, job: Job[..., Any], payload: Payload
    ) -> tuple[Payload, dict[str, Any] | InvalidArguments]:
        """Return the payload with plain arguments, and the arguments, or the error that the attempt is to raise.

        Raises:
            InvalidArguments: The arguments are invalid here, and the client validated them against another signature.
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

    # --- jobs of another version of the code

    def leave_to_others(self, execution: Execution, payload: Payload, text: str) -> Released:
        """Return a job to the queue for workers of another version, which may know it."""
        self._servers.state.fruitless_claims += 1
        now = time.monotonic()
        if now - self._logged_at.get(payload.function, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            if len(self._logged_at) >= _MOST_NAMES:
                self._logged_at.clear()
            self._logged_at[payload.function] = now
            logger.warning("job left in the queue job=%s run=%s: %s", *execution.labels, text)
        return Released(delay_seconds=_LEFT_SECONDS, error=text)

    async def leave_to_old_code(self, execution: Execution, payload: Payload, outcome: Failed) -> Outcome:
        """Release a walk to the workers whose code began it, while any of them is alive; else return its outcome."""
        error = outcome.error
        if not isinstance(error, CursorMismatch) or error.code_version in (None, self._registry.code_version):
            return outcome
        raw = await self._servers.redis(execution.name, lambda: self._store.read_workers())
        workers = describe_workers(raw, self._rules.lease_seconds, datetime.now(UTC))
        if any(one.get("code") == error.code_version and one["state"] == "running" for one in workers.values()):
            text = f"{str(error).splitlines()[0]} Returned to the queue for a worker with the code that began it."
            return self.leave_to_others(execution, payload, text)
        return outcome
