"""One claimed job while this worker has it: what is known of it, its clock, and the control that its loops see."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from worker.attempt.attempt import Attempt
from worker.attempt.cancellation import JobCancellation, Reason
from worker.batch import Progress
from worker.batch.throttle import Wait
from worker.job.definition import Job
from worker.ledger import OwnedRun, RunSpec
from worker.queue.claims import Claim
from worker.queue.payload import Payload, now_ms
from worker.runtime.observer import Observer, RunInfo
from worker.runtime.operator_state import OperatorState
from worker.runtime.server_retry import WorkerState
from worker.settings.model import WorkerSettings

logger = logging.getLogger("longhaul.jobs")

#: A wait for a throttle that is shorter is not worth a line of the log.
_LOGGED_WAIT_SECONDS = 5.0


class Execution:
    """One claimed job, from its claim to the end of this attempt.

    It is the `AttemptControl` of its loops, and what the worker's clock looks at. The executor fills it in; it ends
    with `close`, after which it refers to nothing that refers to it.

    Args:
        claim: the job.
        rules: of the worker's settings.
        state: of the worker.
        operator_state: what operators want.
        observer: hears of progress.

    Attributes:
        claim: the job; its payload is replaced when the run enters the ledger.
        info: the run, as observers see it.
        payload: as it was read; None before, and where it cannot be read.
        job: the function that it names; None before, and where this worker does not know it.
        attempt: the running attempt; None before it begins.
        place: the arguments under which it holds a place among the limits of its job; None where it holds none.
        started_ms: when it was claimed.
        is_abandoned: whether its code did not end in time; nothing that it still does counts.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_interrupt",
        "_is_stalled",
        "_observer",
        "_operator_state",
        "_progressed_at",
        "_rules",
        "_state",
        "_throttle",
        "attempt",
        "claim",
        "deadline",
        "info",
        "is_abandoned",
        "job",
        "last_moment",
        "limit_seconds",
        "payload",
        "place",
        "started_ms",
    )

    def __init__(
        self,
        claim: Claim,
        *,
        rules: WorkerSettings,
        state: WorkerState,
        operator_state: OperatorState,
        observer: Observer,
    ) -> None:
        self.claim = claim
        self.info = RunInfo(claim.run_id, "", claim.queue, claim.attempt, 0)
        self.payload: Payload | None = None
        self.job: Job[..., Any] | None = None
        self.attempt: Attempt | None = None
        self.place: Mapping[str, Any] | None = None
        self.started_ms = now_ms()
        self.is_abandoned = False
        #: The loop's time at which the job has taken too long; None without a limit.
        self.deadline: float | None = None
        #: The loop's time by which the run has to have ended.
        self.last_moment = math.inf
        self.limit_seconds = 0.0
        self._rules = rules
        self._state = state
        self._operator_state = operator_state
        self._observer = observer
        #: The task that runs the job's own code, and as long as it does.
        self._body: asyncio.Task[Any] | None = None
        self._interrupt: JobCancellation | None = None
        #: The loop's time of the last progress; None while the job's code does not run.
        self._progressed_at: float | None = None
        self._is_stalled = False
        self._throttle: str | None = None

    @property
    def name(self) -> str:
        """The job and its run, for the log."""
        return f"{self.info.job or 'job'} {self.claim.run_id}"

    @property
    def labels(self) -> tuple[str, str]:
        """The job and its run, for a log line with `job=%s run=%s`."""
        return self.info.job or "unknown", self.claim.run_id

    @property
    def elapsed_seconds(self) -> float:
        """Time since the claim."""
        return (now_ms() - self.started_ms) / 1000

    def make_spec(self, arguments: str | None = None) -> RunSpec:
        """Return the run's identity for the ledger.

        Args:
            arguments: those that the ledger knows; by default those of the payload.
        """
        payload = self.payload
        assert payload is not None  # noqa: S101
        text = payload.arguments if arguments is None else arguments
        claim = self.claim
        # `redis-cli` writes payloads without the time of enqueueing: the same id a day later has the same payload. Its
        # first attempt is that of a new run, unless the ledger has marked the payload.
        is_new = payload.enqueued_ms == 0 and claim.attempt == 1 and not payload.in_ledger
        return RunSpec(
            claim.run_id,
            payload.function,
            claim.queue,
            _ledger_payload(payload),
            text,
            payload.quarantine_retry,
            is_new,
            payload.in_ledger,
        )

    # --- its clock

    def begin(self, body: asyncio.Task[Any] | None, *, now: float, limit_seconds: float | None) -> None:
        """Start the clock: the job's own code runs from now on.

        Args:
            body: the task that runs it.
            now: the loop's time.
            limit_seconds: time that the code has; None for any.
        """
        self._body, self._progressed_at = body, now
        if self.payload is not None and self.payload.deadline_ms:
            self.last_moment = now + (self.payload.deadline_ms - now_ms()) / 1000
        if limit_seconds is None:
            self.deadline = None
        else:
            self.limit_seconds = limit_seconds
            self.deadline = min(now + limit_seconds, self.last_moment)

    def end(self) -> None:
        """Stop the clock: what follows is the worker's own code, and is not interrupted."""
        self._body = None

    @property
    def runs_code(self) -> bool:
        """Whether the job's own code runs."""
        return self._body is not None

    @property
    def interrupt_reason(self) -> Reason | None:
        """Why the job's code was interrupted; None where it was not."""
        return None if self._interrupt is None else self._interrupt.reason

    @property
    def grace_seconds(self) -> float:
        """Time that the job's code has for its end after an interruption."""
        if self._interrupt is not None:
            return self._interrupt.grace
        if self.job is not None and self.job.rules.grace_period is not None:
            return self.job.rules.grace_period
        return self._rules.grace_period_seconds

    def check_time(self, now: float) -> None:
        """Interrupt a job that takes too long or makes no progress; repeat an interruption that was swallowed.

        Args:
            now: the loop's time.
        """
        if self._body is None:
            return
        if self._interrupt is not None:
            self._interrupt.repeat_if_swallowed(now)
            return
        if self.deadline is not None and self.deadline < now:
            self.interrupt("timeout")
        job = self.job
        if job is None or self._progressed_at is None or self._is_stalled:
            return
        idle_seconds = now - self._progressed_at
        if idle_seconds > (job.rules.stall_timeout or self._rules.stall_timeout_seconds):
            self._is_stalled = True
            logger.warning("job stalled job=%s run=%s idle_seconds=%.0f", *self.labels, idle_seconds)
            self._observer.stalled(self.info, idle_seconds)
            if job.rules.on_stall == "retry":
                self.interrupt("stall")

    def interrupt(self, reason: Reason) -> None:
        """Cancel the job's own code, once. The run ends, or goes back, for the first reason that is given."""
        if self._body is not None and self._interrupt is None:
            now = asyncio.get_running_loop().time()
            self._interrupt = JobCancellation(self._body, reason, now=now, grace=self.grace_seconds)

    def is_overdue(self, now: float) -> bool:
        """Tell whether the job's own code was interrupted and has not ended within its grace period.

        Args:
            now: the loop's time.
        """
        return self._body is not None and self._interrupt is not None and self._interrupt.is_overdue(now)

    def abandon(self) -> asyncio.Task[Any] | None:
        """Wait for the job's own code no more. Returns the task that runs it; None if it has ended by itself."""
        body, self._body = self._body, None
        self.is_abandoned = self.is_abandoned or body is not None
        return body

    @property
    def is_between_batches(self) -> bool:
        """Whether the job is in no durable loop, so that orders do not reach it at a boundary."""
        return self.attempt is None or not self.attempt.is_walking

    async def close(self) -> None:
        """Give back what the attempt has open; the context of an abandoned job stays with its code."""
        attempt = self.attempt
        if attempt is not None:
            await attempt.close()
            if not self.is_abandoned:
                self.attempt = None  # it refers to this object: without the cycle no garbage collection is needed

    # --- the control that the loops see

    @property
    def draining(self) -> bool:
        """Whether the worker is about to stop."""
        return self._state.is_draining

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return what an operator wants of the run."""
        operators = self._operator_state
        if operators.must_ask:
            await operators.refresh()
        return operators.find_order(run_id, job, self.claim.queue)

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator wants, or None."""
        return self._operator_state.rows_per_second(run_id, job)

    def throttled(self, wait: Wait | None, since: datetime) -> None:
        """Report that the walk waits; log it once for each reason."""
        self._note_progress()  # it waits, and knows for what
        kind = wait.reason if wait and wait.until else "the server" if wait else None
        if kind != self._throttle:
            if wait is not None:
                logger.info("walk throttled job=%s run=%s reason=%r", *self.labels, wait.reason)
            else:
                waited = (datetime.now(UTC) - since).total_seconds()
                if waited >= _LOGGED_WAIT_SECONDS:
                    logger.info("walk continues job=%s run=%s waited_seconds=%.1f", *self.labels, waited)
            self._throttle = kind
        self._observer.throttled(
            self.info, wait.reason if wait else None, since=since, until=wait.until if wait else None
        )

    def report(self, progress: Progress, rows: int) -> None:
        """Report a committed batch, or what the job says of itself."""
        if not self.is_abandoned:
            self._note_progress()
            self._observer.progressed(self.info, progress, rows=rows)

    def _note_progress(self) -> None:
        self._progressed_at, self._is_stalled = asyncio.get_running_loop().time(), False

    def became_durable(self, run: OwnedRun) -> None:
        """Lift the total timeout: the run is in the ledger from now on."""
        self.deadline = self.last_moment
        # From now on the payload says so, wherever it is put back from: the next attempt asks the ledger first.
        self.claim = self.claim._replace(payload=run.spec.payload.encode())
        if run.takeovers or run.rows:
            logger.info("run resumed job=%s run=%s rows=%d takeovers=%d", *self.labels, run.rows, run.takeovers)
        self._observer.durable(self.info, attempt=run.attempt, takeovers=run.takeovers, rows=run.rows)


def _ledger_payload(payload: Payload) -> str:
    """Return the payload as the ledger keeps it: one that comes back from there says so."""
    marked = payload._replace(in_ledger=True)
    try:
        return marked.to_json()
    except TypeError:  # the arguments of a pickle that were refused: the run ends, and needs none
        return marked._replace(args=[], kwargs={}).to_json()
