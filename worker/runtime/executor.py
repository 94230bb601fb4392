"""One claimed job: its payload, its orders, its try; how that ends stands in `ends.py`."""

from __future__ import annotations

import asyncio
import difflib
import logging
import math
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.attempt.attempt import Attempt
from worker.attempt.cancellation import JobCancellation, Reason
from worker.attempt.context import JobContext
from worker.attempt.task_stack import stack_of
from worker.batch import Progress
from worker.batch.throttle import Wait
from worker.errors import (
    AlreadyFinished,
    AttemptExit,
    AttemptReleased,
    Cancelled,
    FencedOut,
    InvalidArguments,
    InvalidPayload,
    LonghaulError,
    NonRetryableError,
    StallTimeout,
    format_error,
)
from worker.job.definition import Job
from worker.job.middleware import through
from worker.job.propagation import apply_headers
from worker.ledger import OwnedRun
from worker.queue.payload import Payload, decode_payload, now_ms
from worker.queue.result import Result
from worker.queue.store import Claim
from worker.runtime.completer import PAUSED_SECONDS, Completer
from worker.runtime.observer import RunInfo
from worker.runtime.services import WorkerServices

logger = logging.getLogger("longhaul.jobs")

_UNKNOWN_SECONDS = 5.0
_DEADLINE = "its deadline has passed"
_WORTH_A_LINE_SECONDS = 5.0
_SAY_AGAIN_SECONDS = 60.0


class Executor(Completer):
    """One try of one job.

    Args:
        services: what it shares with the others.
        claim: the job.
    """

    def __init__(self, services: WorkerServices, claim: Claim) -> None:
        super().__init__(services, claim)
        #: The task that runs the job's own code, and as long as it does.
        self._body: asyncio.Task[Any] | None = None
        #: The loop's time at which the job has taken too long; None without a limit.
        self.deadline: float | None = None
        #: The loop's time of its last progress; None while it is not running.
        self._moved_at: float | None = None
        self._stalled = False
        self._limit = 0.0
        #: The loop's time by which the run has to have ended.
        self._last_moment = math.inf
        self._interrupt: JobCancellation | None = None
        #: Whether the job's own code did not end in its time: nothing of what it does counts any more.
        self._given_up = False
        #: The arguments under which it has a place among the limits of its job.
        self._place: dict[str, Any] | None = None
        self._held: str | None = None

    # --- the control that the loops see

    @property
    def draining(self) -> bool:
        """Whether the worker is about to stop."""
        return self.services.draining

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return what an operator wants."""
        if self.services.orders.must_ask:
            await self.services.orders.refresh()
        return self.services.orders.of(run_id, job, self.claim.queue)

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator wants, or None."""
        return self.services.orders.rows_per_second(run_id, job)

    def throttled(self, wait: Wait | None, since: datetime) -> None:
        """Pass on that the walk waits, and why; say it in the log once for each reason."""
        self._moved()  # it waits, and knows for what
        kind = wait.reason if wait and wait.until else "the server" if wait else None
        if kind != self._held:
            if wait is not None:
                logger.info("%s: waits: %s", self._name, wait.reason)
            else:
                waited = (datetime.now(UTC) - since).total_seconds()
                if waited >= _WORTH_A_LINE_SECONDS:
                    logger.info("%s: goes on after %.1f s", self._name, waited)
            self._held = kind
        self.services.observer.throttled(
            self._info, wait.reason if wait else None, since=since, until=wait.until if wait else None
        )

    def report(self, progress: Progress, rows: int) -> None:
        """Pass progress on: a committed batch, or what the job says of itself."""
        if self._given_up:
            return
        self._moved()
        self.services.observer.progressed(self._info, progress, rows=rows)

    def _moved(self) -> None:
        self._moved_at, self._stalled = asyncio.get_running_loop().time(), False

    # --- what the worker does to it

    def keep_time(self, now: float) -> None:
        """Look whether the job has taken too long, or makes no progress, and whether it hears that.

        Args:
            now: the loop's time.
        """
        if self._body is None:
            return
        if self._interrupt is not None:
            self._interrupt.look(now)
            return
        if self.deadline is not None and self.deadline < now:
            self.interrupt("timeout")
        job = self.job
        if job is None or self._moved_at is None or self._stalled:
            return
        still = now - self._moved_at
        if still > (job.rules.stall_timeout or self.services.settings.worker.stall_timeout_seconds):
            self._stalled = True
            logger.warning("%s: no progress for %.0f s", self._name, still)
            self.services.observer.stalled(self._info, still)
            if job.rules.on_stall == "retry":
                self.interrupt("stall")

    def interrupt(self, reason: Reason) -> None:
        """Cancel the job's own code, once: its run then ends, or goes back, for the first reason that there is."""
        if self._body is None or self._interrupt is not None:
            return
        grace = self.services.settings.worker.grace_period_seconds
        if self.job is not None and self.job.rules.grace_period is not None:
            grace = self.job.rules.grace_period
        now = asyncio.get_running_loop().time()
        self._interrupt = JobCancellation(self._body, reason, now=now, grace=grace)

    def is_overdue(self, now: float) -> bool:
        """Whether the job's own code was interrupted, and has not ended in its time.

        Args:
            now: the loop's time.
        """
        return self._body is not None and self._interrupt is not None and self._interrupt.is_overdue(now)

    @property
    def runs_code(self) -> bool:
        """Whether the job's own code runs: what follows it is the worker's."""
        return self._body is not None

    @property
    def _reason(self) -> Reason | None:
        return None if self._interrupt is None else self._interrupt.reason

    @property
    def between_batches(self) -> bool:
        """Whether the job stands in no durable loop, so that orders do not reach it at a boundary."""
        return self.attempt is None or not self.attempt.is_walking

    # --- the try

    async def run(self) -> None:
        """Run the try to its end. Raises nothing but a cancellation of the worker itself."""
        try:
            await self._patiently(self._run())
        finally:
            if self.attempt is not None:
                await self.attempt.close()
            if not self._given_up:
                self.attempt = None  # it knows us, too: without that circle no garbage collector is needed for either

    async def give_up(self) -> None:
        """End the try without the job's own code, which does not end: whatever that does from now on is refused.

        It cannot be killed, and may end later: then it finds its run's connection closed, and no way to the queue.
        """
        body, interrupt = self._body, self._interrupt
        if body is None:
            return
        self._given_up, self._body = True, None
        reason = "the drain" if interrupt is None else f"its {interrupt.reason}"
        job = self.job
        beside = [] if self.attempt is None else await self.attempt.abandon()
        logger.error(
            "%s: given up: it has not ended since %s; its slot is free, and what it does from now on is refused. %s",
            self._name,
            reason,
            "".join(beside)
            if job is not None and job.run_in != "loop"
            else "".join([*beside, f"It stands at\n{stack_of(body, inside=None if job is None else job.function)}"]),
        )
        await self._patiently(self._end_given_up())

    async def _end_given_up(self) -> None:
        """End the try as its interruption has it."""
        job = self.job
        assert job is not None  # noqa: S101
        error = self._why_cancelled()
        if isinstance(error, TimeoutError) and self._interrupt is not None:
            error = TimeoutError(f"{error}; it did not end within {self._interrupt.grace:g} s of that: given up")
        try:
            await self._settle(job, error)
        finally:
            await self._leave_place()

    async def _patiently(self, ending: Coroutine[Any, Any, None]) -> None:
        """Leave the job to its lease where a server is away for too long."""
        try:
            await ending
        except (RedisError, SQLAlchemyError, OSError) as error:
            # The lease runs out by itself, and the job is claimed again.
            logger.error("%s: %s; left to its lease", self._name, format_error(error))
        except FencedOut:
            self._lost()

    async def _run(self) -> None:
        claim, services = self.claim, self.services
        try:
            payload = await self._read_payload()
        except InvalidPayload as error:
            await self._end_dead(format_error(error))
            return
        if payload.tries is not None and payload.tries > claim.tries:
            tries = payload.tries
            self.claim = await self._with_redis(lambda: services.store.set_tries(claim, tries))
        await self._run_job(payload)

    async def _run_job(self, payload: Payload) -> None:
        claim, services = self.claim, self.services
        job = services.registry.get(payload.function)
        self._info = RunInfo(claim.run_id, payload.function, claim.queue, claim.tries, payload.enqueued_ms)
        if await self._obeyed(payload):
            return
        if 0 < payload.until_ms < self._started_ms and claim.tries == 1 and not payload.in_ledger:
            late = (self._started_ms - payload.until_ms) / 1000
            await self._end_dead(f"expired {late:.1f} s before it could begin: it was not run")
            return
        if 0 < payload.deadline_ms < self._started_ms:
            text = f"{_DEADLINE}; it was not begun"
            await self._with_database(lambda: self._end_in_ledger(payload, "dead", text))
            await self._end_dead(text)
            return
        if job is None:
            near = difflib.get_close_matches(payload.function, services.registry, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            text = f"unknown job {payload.function!r}: kept in the queue for a worker that knows it{hint}"
            await self._keep_for_others(payload, text)
            return
        self.job = job
        try:
            if payload.pickled:  # what came as Python's own values becomes JSON first
                plain = job.encode_arguments(payload.args, payload.kwargs)
                payload = self.payload = payload._replace(args=[], kwargs=plain)
            arguments: dict[str, Any] | InvalidArguments = job.decode_arguments(payload.args, payload.kwargs)
        except InvalidArguments as error:
            if payload.version not in ("", job.version):  # validated by another signature than ours
                text = f"{error}; kept in the queue for a worker that has the signature of its client"
                await self._keep_for_others(payload, text)
                return
            arguments = error  # raised as a job's own error: the ledger may know an earlier try
        except Exception as error:  # noqa: BLE001 - a validator of the job's author raises anything
            arguments = InvalidArguments(f"job {job.name}: its arguments cannot be read: {format_error(error)}")
        if job.limits is None or isinstance(arguments, InvalidArguments):
            await self._try(job, payload, arguments)
            return
        held = await self._with_redis(lambda: services.limiter.enter(job, claim, arguments))
        if held is not None:
            await self._requeue(held.seconds, counts=False)
            services.observer.left(self._info, "waiting", delay=held.seconds)
            return
        self._place = arguments
        try:
            await self._try(job, payload, arguments)
        finally:
            await self._leave_place()

    async def _leave_place(self) -> None:
        """Give the place among the limits back, once: later, it may be that of another try of the same run."""
        arguments, self._place = self._place, None
        job, limiter = self.job, self.services.limiter
        if arguments is not None and job is not None:
            await self._with_redis(lambda: limiter.leave(job, self.claim, arguments))

    async def _requeue(self, delay: float, *, counts: bool) -> None:
        await self._leave_place()
        await super()._requeue(delay, counts=counts)

    async def _read_payload(self) -> Payload:
        raw = self.claim.payload
        if raw is None:
            known = await self._with_database(lambda: self.services.ledger.find(self.claim.run_id))
            if known is None:
                raise InvalidPayload(
                    f"the queue has the id, but there is no payload at arq:job:{self.claim.run_id}; set it first, "
                    f"then ZADD the id"
                )
            raw = known.payload.encode()
            self.claim = self.claim._replace(payload=raw)
        self.payload = decode_payload(raw, accept_pickle=self.services.settings.worker.accept_pickle)
        return self.payload

    async def _obeyed(self, payload: Payload) -> bool:
        """Obey an order that came before the job began; False where there is none."""
        if self.services.orders.must_ask:
            await self.services.orders.refresh()
        order = self.services.orders.of(self.claim.run_id, payload.function, self.claim.queue)
        if order == "cancel":
            text = "cancelled by order before it began"
            await self._with_database(lambda: self._end_in_ledger(payload, "cancelled", text))
            await self._finish(Result(False, text, cancelled=True))
            self.services.observer.ended(self._info, "cancelled", error=text)
            return True
        if order == "pause":
            await self._requeue(PAUSED_SECONDS, counts=False)
            self.services.observer.left(self._info, "paused", delay=PAUSED_SECONDS)
            return True
        return False

    async def _keep_for_others(self, payload: Payload, text: str) -> None:
        """Another version of the worker may know this job: it stays in the queue."""
        said_at = self.services.said.get(payload.function, -math.inf)
        if time.monotonic() - said_at > _SAY_AGAIN_SECONDS:
            self.services.said[payload.function] = time.monotonic()
            logger.warning("%s: %s", self._name, text)
        await self._requeue(_UNKNOWN_SECONDS, counts=False)
        self.services.observer.left(self._info, "waiting", error=text, delay=_UNKNOWN_SECONDS)

    async def _try(self, job: Job[..., Any], payload: Payload, arguments: dict[str, Any] | InvalidArguments) -> None:
        services, claim = self.services, self.claim
        max_attempts = job.rules.max_attempts or services.settings.worker.max_attempts
        self.attempt = attempt = Attempt(
            run_id=claim.run_id,
            job=payload.function,
            number=claim.tries,
            spec=lambda: self._spec(payload),
            settings=services.settings,
            database=services.database,
            ledger=services.ledger,
            control=self,
            pools=services.pools,
            max_attempts=max_attempts,
            throttles=job.throttles,
        )
        enqueued_at = datetime.fromtimestamp((payload.enqueued_ms or claim.due_ms) / 1000, UTC)
        ctx = JobContext(attempt, enqueued_at=enqueued_at, headers=payload.headers, redis=services.store.redis)
        if payload.headers:
            apply_headers(payload.headers)  # the context is this task's own
        services.observer.started(self._info)
        services.lines.info("%s: try %d begins", self._name, claim.tries)
        self._limit = job.rules.timeout or services.settings.worker.job_timeout_seconds
        self._moved_at = asyncio.get_running_loop().time()
        if payload.deadline_ms:
            self._last_moment = self._moved_at + (payload.deadline_ms - now_ms()) / 1000
        self.deadline = min(self._moved_at + self._limit, self._last_moment)
        self._body = body = asyncio.current_task()
        error: BaseException | None = None
        result: Any = None
        try:
            try:
                result = await self._perform(job, attempt, ctx, arguments)
            finally:
                self._body = None  # what follows is not the job's own code, and not interrupted
        except asyncio.CancelledError:
            if self._reason is None and body is not None and body.cancelling():
                raise  # the worker itself is at its end
            while self._reason is not None and body is not None and body.uncancel():
                pass  # what follows is not cancelled
            error = self._why_cancelled()
        except BaseExceptionGroup as group:
            error = _the_interruption(group) or group
        except (Exception, AttemptExit) as raised:  # noqa: BLE001 - a job raises anything
            error = raised
        if self._given_up:
            logger.warning("%s: ended after it was given up: nothing of it counts", self._name)
        elif error is not None:
            await self._settle(job, error)
        else:
            await self._succeed(job, result)

    def _why_cancelled(self) -> BaseException:
        """Return what a cancellation of the job's code means."""
        if self._reason == "timeout" and asyncio.get_running_loop().time() >= self._last_moment:
            return NonRetryableError(f"{_DEADLINE}: cancelled")
        if self._reason == "timeout":
            return TimeoutError(f"took longer than {self._limit:g} s; give @job(timeout=...) or walk in batches")
        if self._reason == "stall":
            return StallTimeout("no progress for too long: cancelled, to be tried again")
        if self._reason == "lost":
            return FencedOut(self.claim.run_id)
        if self._reason == "drain":
            return AttemptReleased("drain")
        if self._reason == "cancel":
            return Cancelled("cancelled by order")
        return LonghaulError("the job cancelled itself")

    async def _settle(self, job: Job[..., Any], error: BaseException) -> None:
        """Bring a try to its end that did not return: interrupted, or failed."""
        try:
            raise error
        except AlreadyFinished as ended:
            await self._answer(ended)
        except AttemptReleased as drained:
            await self._hand_back("paused" if drained.reason == "pause" else "waiting")
        except Cancelled:
            await self._end_cancelled()
        except FencedOut:
            self._lost()
        except (Exception, BaseExceptionGroup) as failure:  # noqa: BLE001 - it is judged and written down
            await self._fail(job, failure)

    async def _perform(
        self, job: Job[..., Any], attempt: Attempt, ctx: JobContext, arguments: dict[str, Any] | InvalidArguments
    ) -> Any:
        try:
            if self.claim.tries > 1 or (self.payload is not None and self.payload.in_ledger):
                await self._resume(attempt)
            if isinstance(arguments, InvalidArguments):
                raise arguments
            if not self.services.run_hooks:
                return await attempt.run(job, ctx, arguments)
            return await through(self.services.run_hooks, ctx, partial(attempt.run, job, ctx, arguments))
        except (SystemExit, KeyboardInterrupt) as error:
            raise NonRetryableError(f"the job raised {type(error).__name__}, which would end the worker") from error

    def became_durable(self, run: OwnedRun) -> None:
        """Lift the total timeout: the run has begun in the ledger."""
        self.deadline = self._last_moment
        # From now on the payload says so, wherever it is put back from: the next attempt asks the ledger first.
        self.claim = self.claim._replace(payload=run.spec.payload.encode())
        if run.takeovers or run.rows:
            logger.info("%s: goes on after %d rows; takeovers: %d", self._name, run.rows, run.takeovers)
        self.services.observer.durable(self._info, attempt=run.attempt, takeovers=run.takeovers, rows=run.rows)

    async def _resume(self, attempt: Attempt) -> None:
        """The queue has seen this job before: the ledger says what it knows of it, before any code runs."""
        known = await self.services.ledger.find(self.claim.run_id)
        if known is None:
            if self.claim.tries > attempt.max_attempts:
                raise NonRetryableError(f"its worker ended at each of {self.claim.tries - 1} tries")
            return
        run = await attempt.durable_run()
        # One try more than allowed: a loop names the batch that its workers died in. If even that try
        # died, it never came to the loop.
        if run.attempt > attempt.max_attempts + 1:
            raise NonRetryableError(f"its worker ended at each of {run.attempt - 1} tries, outside of a loop")


def _the_interruption(group: BaseExceptionGroup[BaseException]) -> AttemptExit | None:
    """Return the one interruption in a group, e.g. of a job's TaskGroup; None where something failed beside it."""
    found = [error for error in group.exceptions if not isinstance(error, BaseExceptionGroup)]
    found += [
        inner
        for each in group.exceptions
        if isinstance(each, BaseExceptionGroup)
        for inner in [_the_interruption(each)]
        if inner is not None
    ]
    return found[0] if len(found) == 1 and isinstance(found[0], AttemptExit) else None


__all__ = ["Executor"]
