"""How a try ends: in the ledger first, which is the truth, then in Redis, and last for whoever watches.

Each step is idempotent, and repeated while its server is away: what was done stays done, and is told when it can be.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import Any, TypeVar

from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker.attempt.attempt import Attempt
from worker.db.errors import is_unavailable, sqlstate
from worker.errors import AlreadyFinished, FencedOut, format_error
from worker.job.definition import Job
from worker.ledger import OwnedRun, RunSpec
from worker.queue import keys
from worker.queue.chain import make_follow_up
from worker.queue.payload import Payload, now_ms
from worker.queue.result import Result, encode_result
from worker.queue.store import Ack, Claim
from worker.runtime.observer import RunInfo
from worker.runtime.retry_policy import decide
from worker.runtime.services import WorkerServices

logger = logging.getLogger("longhaul.jobs")

T = TypeVar("T")

PAUSED_SECONDS = 1.0
_AWAY_PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
_REDIS_PAUSES = (0.2, 0.5, 1.0)
_DATA_EXCEPTION = "22"  # SQLSTATE class: e.g. NUL in a text


class Completer:
    """The ends of one try.

    Args:
        services: what it shares with the others.
        claim: the job.
    """

    def __init__(self, services: WorkerServices, claim: Claim) -> None:
        self.services = services
        self.claim = claim
        self.job: Job[..., Any] | None = None
        self.attempt: Attempt | None = None
        self.payload: Payload | None = None
        self._info = RunInfo(claim.run_id, "", claim.queue, claim.tries, 0)
        self._started_ms = now_ms()

    async def _succeed(self, job: Job[..., Any], value: Any) -> None:
        try:
            text = job.encode_result(value)
        except ValueError as error:
            logger.warning("%s: its result cannot be JSON and is not kept: %s", self._name, error)
            text = "null"
        run = self.attempt.ledger_run if self.attempt else None
        size = len(text.encode())
        too_large = size if size > self.services.settings.worker.max_result_bytes else 0
        if too_large:
            logger.warning(
                "%s: its result of %d bytes is over worker.max_result_bytes and is not kept; write large results "
                "to a table, and return their key",
                self._name,
                size,
            )
            text = "null"
        if run is not None:
            await self._with_database(lambda: self._finish_with_result(run, text))
        await self._finish(Result(True, None, too_large=too_large), result_json=text, job=job)
        self._log_end("succeeded")
        self.services.observer.ended(self._info, "succeeded", result=text)

    async def _finish_with_result(self, run: OwnedRun, text: str) -> None:
        try:
            await run.finish("succeeded", result=text)
        except DBAPIError as error:
            if not (sqlstate(error) or "").startswith(_DATA_EXCEPTION):
                raise
            logger.warning("%s: PostgreSQL cannot keep its result: %s", self._name, format_error(error))
            await run.finish("succeeded", result=None)

    async def _answer(self, ended: AlreadyFinished) -> None:
        success = ended.state == "succeeded"
        value = ended.result if success else ended.error
        await self._finish(Result(success, value, cancelled=ended.state == "cancelled"), job=self.job)
        self.services.observer.ended(self._info, ended.state, error=ended.error, result=ended.result)

    async def _end_cancelled(self) -> None:
        run = self.attempt.ledger_run if self.attempt else None
        if run is not None:
            await self._with_database(lambda: run.finish("cancelled", error="cancelled by order"))
        self._log_end("cancelled by order")
        await self._finish(Result(False, "cancelled by order", cancelled=True), job=self.job)
        self.services.observer.ended(self._info, "cancelled", error="cancelled by order")

    async def _hand_back(self, state: str) -> None:
        run = self.attempt.ledger_run if self.attempt else None
        if run is not None:
            await self._with_database(lambda: run.release(state, failed=False))
            await self._release()
        delay = PAUSED_SECONDS if state == "paused" else 0.0
        await self._requeue(delay, counts=False)
        self._log_end("paused" if state == "paused" else "back in the queue")
        self.services.observer.left(self._info, state, delay=delay)

    def _log_end(self, how: str) -> None:
        rows = f", {self.attempt.rows_done:,} rows" if self.attempt and self.attempt.ledger_run else ""
        self.services.lines.info("%s: %s after %.1f s%s", self._name, how, (now_ms() - self._started_ms) / 1000, rows)

    async def _fail(self, job: Job[..., Any], error: BaseException) -> None:
        run = self.attempt.ledger_run if self.attempt else None
        attempt = run.attempt if run else self.claim.tries
        progressed = run.has_progressed if run else False
        verdict = decide(error, job, attempt=attempt, progressed=progressed, rules=self.services.settings.worker)
        where = self.attempt.where if self.attempt else None
        text = f"{verdict.error} [{where}]" if where else verdict.error
        trace = "".join(traceback.format_exception(error))
        if not verdict.again:
            logger.error("%s: dead: %s", self._name, text, exc_info=error)
            if run is not None:
                await self._with_database(lambda: run.finish("dead", error=text, trace=trace))
            await self._end_dead(text, trace=trace, in_ledger=run is not None, told=True)
            return
        logger.warning("%s: try %d: %s; again in %.1f s", self._name, attempt, text, verdict.delay)
        if run is not None:
            await self._with_database(lambda: run.release("waiting", failed=verdict.counts, error=text, trace=trace))
            await self._release()
        await self._requeue(verdict.delay, counts=verdict.counts)
        self.services.observer.left(self._info, "waiting", error=text, delay=verdict.delay)

    async def _end_dead(self, error: str, *, trace: str = "", in_ledger: bool = False, told: bool = False) -> None:
        if not told:
            logger.error("%s: to the dead letters (worker:dead): %s", self._name, error)
        job, store = self._info.job, self.services.store
        await self._with_redis(
            lambda: store.add_dead_letter(self.claim, error, job=job, trace=trace, in_ledger=in_ledger)
        )
        await self._finish(Result(False, error), job=self.job)
        self.services.observer.ended(self._info, "dead", error=error)

    async def _release(self) -> None:
        # Before the queue has it again: the next owner must not find our connection's transaction.
        if self.attempt is not None:
            await self.attempt.close()

    def _lost(self) -> None:
        logger.warning("%s: another worker has it; what was open here is rolled back", self._name)
        self.services.observer.lost(self._info)

    # --- Redis and the ledger, with patience

    async def _finish(
        self, result: Result, *, result_json: str | None = None, job: Job[..., Any] | None = None
    ) -> None:
        keep = self.services.settings.worker.result_ttl_seconds
        if job is not None and job.rules.result_ttl is not None:
            keep = job.rules.result_ttl
        raw = self.encode(result, result_json)
        keep_ms = round(keep * 1000)
        payload, claim = self.payload, self.claim
        follows = payload is not None and bool(payload.then or payload.group)
        next_: dict[str, Any] | None = None
        if payload is not None and follows:
            text = result_json if result_json is not None else json.dumps(result.value)
            next_ = make_follow_up(payload, run_id=claim.run_id, queue=claim.queue, success=result.success, result=text)
        # What has failed keeps its lock: it may be put back, and is the one with its arguments then.
        lock = self._lock() if result.success or result.cancelled else None
        if lock is not None:
            next_ = (next_ or {}) | {"lock": [lock, claim.run_id]}
        await self._tell_end(Ack(claim, raw, keep_ms, next_))
        if payload is not None and follows and not result.success and keep_ms > 0:
            await self._publish_skipped(payload, result, keep_ms)

    async def _tell_end(self, ended: Ack) -> None:
        """Tell the end.

        Raises:
            FencedOut: it is not this worker's to tell: its lease has run out, and another one has the job.
        """
        if not await self.services.turns.end(ended):
            raise FencedOut(self.claim.run_id)

    def _lock(self) -> str | None:
        """Return the lock that a unique job has for as long as it is in the queue, by what its client took."""
        job, payload = self.services.registry.get(self._info.job), self.payload
        if job is None or job.unique is None or job.unique.counts == "time" or payload is None or payload.args:
            return None
        return keys.UNIQUE + job.unique.key(job.name, payload.kwargs)

    async def _publish_skipped(self, payload: Payload, result: Result, keep_ms: int) -> None:
        """Tell those who wait for what was to follow that it does not."""
        ids = [call["id"] for call in payload.then if "id" in call]
        group, store = payload.group, self.services.store
        if group is not None and await self._with_redis(lambda: store.needs_success(group.group)):
            ids.append(f"{group.group}:then")
        why = Result(False, f"not begun: {self._info.job} {self.claim.run_id}: {result.value}", result.cancelled)
        raw = encode_result(None, why, run_id="", queue=self.claim.queue, tries=0, started_ms=now_ms())
        await self._with_redis(lambda: store.publish_skipped(ids, raw, keep_ms))

    def encode(self, result: Result, result_json: str | None) -> bytes:
        """Return what the result's key gets."""
        return encode_result(
            self.payload,
            result,
            run_id=self.claim.run_id,
            queue=self.claim.queue,
            tries=self.claim.tries,
            started_ms=self._started_ms,
            result_json=result_json,
        )

    async def _requeue(self, delay: float, *, counts: bool) -> None:
        self.services.stop_renewing(self.claim.run_id)
        if not await self._with_redis(lambda: self.services.store.requeue(self.claim, delay=delay, counts=counts)):
            raise FencedOut(self.claim.run_id)

    async def _with_redis(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step until Redis has taken it. Each is idempotent."""
        who, outage = f"{self._name} cannot go on", self.services.outage
        try:
            for pause in chain(_REDIS_PAUSES, repeat(_REDIS_PAUSES[-1])):
                try:
                    return await operation()
                except RedisError as error:
                    if self.services.is_shutdown_forced:
                        raise
                    outage.failed(who, error)
                    await asyncio.sleep(pause)
            raise AssertionError
        finally:
            outage.answered(who)

    async def _with_database(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step of the ledger for some seconds while the database is away. Each is idempotent."""
        for pause in _AWAY_PAUSES:
            try:
                return await operation()
            except (SQLAlchemyError, OSError) as error:
                if not is_unavailable(error):
                    raise
                await asyncio.sleep(pause)
        return await operation()

    @property
    def _name(self) -> str:
        return f"{self._info.job or 'job'} {self.claim.run_id}"

    async def _end_in_ledger(self, payload: Payload, state: str, error: str) -> None:
        """End a run that the ledger may have of an earlier try: it is taken over first, whoever had it."""
        known = await self.services.ledger.find(self.claim.run_id)
        if known is None or known.finished or known.job != payload.function:
            return
        run = await self.services.ledger.claim(self._spec(payload, known.arguments))
        try:
            await run.finish(state, error=error)
        finally:
            await run.close()

    def _spec(self, payload: Payload, arguments: str | None = None) -> RunSpec:
        text = payload.arguments if arguments is None else arguments
        return RunSpec(self.claim.run_id, payload.function, self.claim.queue, self._marked(payload), text, payload.only)

    def _marked(self, payload: Payload) -> str:
        """Return the payload as the ledger keeps it: one that comes back from there says so."""
        marked = payload._replace(in_ledger=True)
        try:
            return marked.to_json()
        except TypeError:  # a pickle's arguments that were refused: the run ends, and needs none
            return marked._replace(args=[], kwargs={}).to_json()
