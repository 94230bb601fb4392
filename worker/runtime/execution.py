"""One claimed job while this worker has it: its state, its clock, and the control that its loops use."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from worker.attempt.attempt import Attempt
from worker.attempt.cancellation import JobCancellation, Reason
from worker.batch import Progress
from worker.batch.throttle import Wait
from worker.job.definition import Job
from worker.job.propagation import QUARANTINED_ROWS, SELECTED
from worker.ledger import Hand, OwnedRun, RunSpec
from worker.queue.claims import Claim, ledger_text
from worker.queue.payload import Payload, now_ms
from worker.runtime.hands import HandRuns
from worker.runtime.limiter import line_key
from worker.runtime.observer import Observer, RunInfo
from worker.runtime.operator_state import OperatorState
from worker.runtime.server_retry import WorkerState
from worker.runtime.waiting_runs import WaitingRuns
from worker.settings.sections import WorkerSettings

logger = logging.getLogger("longhaul.jobs")

#: The end of a shorter wait for a throttle is not logged.
_LOGGED_WAIT_SECONDS = 5.0
#: A wait for the same reason so soon after the last one continues it: a walk under a pace waits after each batch.
_SAME_WAIT_SECONDS = 60.0
_MOST_REASONS = 100


class Execution:
    """One claimed job, from its claim to the end of this attempt.

    It implements `AttemptControl` for the job's loops, and the worker's clock checks it. The executor fills it in.
    `close` breaks its reference cycles.

    Args:
        claim: the job.
        rules: the `worker` section of the settings.
        state: the state of the worker.
        operator_state: the operator commands.
        observer: is notified of progress.
        hands: the helper runs of walks.
        waiting_runs: decides when a walk gives its slot to another run; None for never.

    Attributes:
        claim: the job; its payload is replaced when the run is created in the ledger.
        info: the run, as observers see it.
        payload: the payload; None before it is read, and if it cannot be read.
        job: the job that the payload names; None before it is read, and if this worker does not know the job.
        attempt: the running attempt; None before it begins.
        place: the arguments under which it holds a place under its job's limits; None if it holds none.
        started_ms: time of the claim, in ms since 1970.
        is_abandoned: whether its code did not end in time. Later writes and results of that code are ignored.
    """

    __slots__ = (
        "__weakref__",
        "_began_at",
        "_body",
        "_hands",
        "_interrupt",
        "_is_stalled",
        "_is_wait_logged",
        "_observer",
        "_operator_state",
        "_progressed_at",
        "_rules",
        "_state",
        "_waiting_runs",
        "_waits",
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
        hands: HandRuns,
        waiting_runs: WaitingRuns | None = None,
    ) -> None:
        self.claim = claim
        self.info = RunInfo(claim.run_id, "", claim.queue, claim.attempt, 0, "", claim.due_ms, claim.expired)
        self.payload: Payload | None = None
        self.job: Job[..., Any] | None = None
        self.attempt: Attempt | None = None
        self.place: Mapping[str, Any] | None = None
        self.started_ms = now_ms()
        self.is_abandoned = False
        #: The loop's time at which the job's timeout passes; None without a timeout.
        self.deadline: float | None = None
        #: The loop's time of the run's deadline.
        self.last_moment = math.inf
        self.limit_seconds = 0.0
        self._rules = rules
        self._state = state
        self._operator_state = operator_state
        self._observer = observer
        self._hands = hands
        #: The task that runs the job's own code; None while that code does not run.
        self._body: asyncio.Task[Any] | None = None
        self._interrupt: JobCancellation | None = None
        #: The loop's time of the last progress; None while the job's code does not run.
        self._progressed_at: float | None = None
        self._is_stalled = False
        self._waiting_runs = waiting_runs
        self._began_at = math.inf
        #: When the walk last waited for each reason, by the loop's time.
        self._waits: dict[str, float] = {}
        self._is_wait_logged = False

    @property
    def name(self) -> str:
        """The job and its run, for the log."""
        return f"{self.info.job or 'job'} {self.claim.run_id}"

    @property
    def labels(self) -> tuple[str, str]:
        """The job and its run, for a log line with `job=%s run=%s`."""
        return self.info.job or "unknown", self.claim.run_id

    @property
    def log_fields(self) -> dict[str, Any]:
        """The attempt, and the step that has failed, for lines that are logged after the attempt has ended."""
        return {"attempt": self.claim.attempt} if self.attempt is None else self.attempt.fields.as_extra()

    @property
    def may_be_in_ledger(self) -> bool:
        """Whether this attempt or an earlier one may have created the run in the ledger."""
        is_known = self.claim.attempt > 1 or (self.payload is not None and self.payload.in_ledger)
        return is_known or (self.attempt is not None and self.attempt.has_claimed)

    @property
    def is_helper(self) -> bool:
        """Whether it is a helper run, which takes part in a walk of another run."""
        return self.payload is not None and self.payload.hand is not None

    @property
    def elapsed_seconds(self) -> float:
        """Time since the claim."""
        return (now_ms() - self.started_ms) / 1000

    def make_spec(self, arguments: str | None = None) -> RunSpec:
        """Return the run's identity for the ledger.

        Args:
            arguments: the arguments to store in the ledger; by default those of the payload.
        """
        payload = self.payload
        assert payload is not None  # noqa: S101
        text = payload.arguments if arguments is None else arguments
        claim = self.claim
        # A payload written with `redis-cli` has no time of enqueueing, so a reused id has the same payload. Its first
        # attempt starts a new run, unless the payload is marked as known to the ledger.
        is_new = payload.enqueued_ms == 0 and claim.attempt == 1 and not payload.in_ledger
        return RunSpec(
            claim.run_id,
            payload.function,
            claim.queue,
            ledger_text(payload),
            text,
            payload.quarantine_retry,
            is_new,
            payload.in_ledger,
            None if payload.hand is None else Hand(*payload.hand),
            self.job is not None and self.job.rules.overlap,
            self.job is not None and self.job.rules.once,
            SELECTED in payload.headers,
            payload.headers.get(QUARANTINED_ROWS),
        )

    # --- its clock

    def begin(self, body: asyncio.Task[Any] | None, *, now: float, limit_seconds: float | None) -> None:
        """Start the clock when the job's own code starts.

        Args:
            body: the task that runs it.
            now: the loop's time.
            limit_seconds: the timeout of the code in seconds; None for no timeout.
        """
        self._body, self._progressed_at, self._began_at = body, now, now
        if self.payload is not None and self.payload.deadline_ms:
            self.last_moment = now + (self.payload.deadline_ms - now_ms()) / 1000
        if limit_seconds is None:
            self.deadline = None
        else:
            self.limit_seconds = limit_seconds
            self.deadline = min(now + limit_seconds, self.last_moment)

    def end(self) -> None:
        """Stop the clock: the worker's own code, which follows, must not be interrupted."""
        self._body = None

    @property
    def runs_code(self) -> bool:
        """Whether the job's own code runs."""
        return self._body is not None

    @property
    def interrupt_reason(self) -> Reason | None:
        """The reason for which the job's code was interrupted; None if it was not."""
        return None if self._interrupt is None else self._interrupt.reason

    @property
    def grace_seconds(self) -> float:
        """Seconds that the job's code may take to end after an interruption."""
        if self._interrupt is not None:
            return self._interrupt.grace
        if self.job is not None and self.job.rules.grace_period is not None:
            return self.job.rules.grace_period
        return self._rules.grace_period_seconds

    def check_time(self, now: float) -> None:
        """Interrupt a job that exceeds its timeout or makes no progress; repeat the interruption if it was swallowed.

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
        """Cancel the job's own code, once. The first reason determines the outcome of the run."""
        if self._body is not None and self._interrupt is None:
            now = asyncio.get_running_loop().time()
            self._interrupt = JobCancellation(self._body, reason, now=now, grace=self.grace_seconds)

    def is_overdue(self, now: float) -> bool:
        """Return whether the job's own code was interrupted and has not ended within its grace period.

        Args:
            now: the loop's time.
        """
        return self._body is not None and self._interrupt is not None and self._interrupt.is_overdue(now)

    def abandon(self) -> asyncio.Task[Any] | None:
        """Stop waiting for the job's own code. Return the task that runs it; None if the code has ended."""
        body, self._body = self._body, None
        self.is_abandoned = self.is_abandoned or body is not None
        return body

    @property
    def is_between_batches(self) -> bool:
        """Whether the job is outside of a durable loop, so that it reaches no boundary at which commands are read."""
        return self.attempt is None or not self.attempt.is_walking

    async def close(self, *, discard: bool = False) -> None:
        """Close the attempt's connections. The context of an abandoned job stays open, because its code still runs.

        With `discard`, the run's connection does not return to the pool: the next owner of the run terminates it.
        """
        attempt = self.attempt
        if attempt is not None:
            if attempt.ledger_run is not None:
                await attempt.close(discard=discard)
            if not self.is_abandoned:
                self.attempt = None  # it refers to this object: without the cycle no garbage collection is needed

    # --- the control that the loops see

    @property
    def draining(self) -> bool:
        """Whether the worker is draining."""
        return self._state.is_draining

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """Return the operator command for the run, or None."""
        operators = self._operator_state
        if operators.must_ask:
            await operators.refresh()
        found = operators.find_order(run_id, job, self.claim.queue, self.read_arguments)
        if found is None and run_id != self.claim.run_id:  # a helper is also commanded by its own id
            return operators.find_order(self.claim.run_id, job, self.claim.queue)
        return found

    def read_arguments(self) -> Mapping[str, Any]:
        """Return the arguments as JSON values by name, with their defaults; none before the job is known."""
        job, payload = self.job, self.payload
        if job is None or payload is None:
            return {}
        named = dict(zip(job.signature.parameters, payload.args, strict=False))
        return job.codec.with_defaults({**named, **payload.kwargs})

    async def start_hands(self, step: str, numbers: Sequence[int], fence: int) -> None:
        """Enqueue helper runs for a walk of this run."""
        if self.payload is not None and self.job is not None:
            await self._hands.enqueue(self.claim, self.payload, step, numbers, fence, priority=self.job.priority)

    async def is_alive(self, run_id: str) -> bool:
        """Return whether a worker holds the lease of a helper run."""
        return await self._hands.is_alive(run_id)

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that an operator has set, or None."""
        return self._operator_state.rows_per_second(run_id, job)

    def step_began(self, name: str) -> None:
        """Apply the job's timeout to the function of a step, and show the step."""
        limit = self.limit_seconds or math.inf
        self.deadline = min(asyncio.get_running_loop().time() + limit, self.last_moment)
        attempt = self.attempt
        self.report(Progress(name, "step", 0, None, None, 0, 0, 0.0, ""), attempt.rows_done if attempt else 0)

    def step_ended(self) -> None:
        """Lift the timeout: a step is progress."""
        self.deadline = self.last_moment
        self._note_progress()

    def throttled(self, wait: Wait | None, since: datetime) -> None:
        """Report that the walk waits, or that it continues. Log each reason once, not for each batch."""
        self._note_progress()  # a walk that waits for a known reason has not stalled
        if wait is None:
            waited = (datetime.now(UTC) - since).total_seconds()
            if self._is_wait_logged and waited >= _LOGGED_WAIT_SECONDS:
                logger.info("walk continues job=%s run=%s waited_seconds=%.1f", *self.labels, waited)
            self._is_wait_logged = False
        else:
            now, kind = asyncio.get_running_loop().time(), wait.reason if wait.until else "the server"
            if now - self._waits.get(kind, -math.inf) >= _SAME_WAIT_SECONDS:
                logger.info("walk throttled job=%s run=%s reason=%r", *self.labels, wait.reason)
                self._is_wait_logged = True
                if len(self._waits) >= _MOST_REASONS:
                    self._waits.clear()
            self._waits[kind] = now
        reason, until, kind = (None, None, "") if wait is None else (wait.reason, wait.until, wait.kind)
        self._observer.throttled(self.info, reason, since=since, until=until, kind=kind)

    def batch_began(self) -> None:
        """Report that a batch of a walk over a table begins."""
        self._observer.batch_began(self.info)

    def walk_ended(self, *, failed: bool) -> None:
        """Report that a walk has ended."""
        self._observer.walk_ended(self.info, failed=failed)

    def report(self, progress: Progress, rows: int) -> None:
        """Report a committed batch, or progress that the job reports."""
        if not self.is_abandoned:
            self._note_progress()
            self._observer.progressed(self.info, progress, rows=rows)

    def _note_progress(self) -> None:
        self._progressed_at, self._is_stalled = asyncio.get_running_loop().time(), False

    async def must_yield(self) -> bool:
        """Return whether the walk has had its slot for `yield_after`, and another run waits for it."""
        job, waiting = self.job, self._waiting_runs
        if job is None or waiting is None:
            return False
        after = self._rules.yield_seconds if job.rules.yield_after is None else job.rules.yield_after
        if not after or asyncio.get_running_loop().time() - self._began_at < after:
            return False
        place = None if self.place is None else line_key(job, self.place)
        return await waiting.take_one(self.claim.queue, job.priority, place)

    def became_durable(self, run: OwnedRun) -> None:
        """Lift the total timeout: from the ledger, the run can resume at its last checkpoint."""
        self.deadline = self.last_moment
        # Mark the payload, so that the next attempt reads the ledger first, whichever worker requeues the run.
        self.claim = self.claim._replace(payload=run.spec.payload.encode())
        if run.takeovers or run.rows:
            logger.info("run resumed job=%s run=%s rows=%d takeovers=%d", *self.labels, run.rows, run.takeovers)
        self._observer.durable(self.info, attempt=run.attempt, takeovers=run.takeovers, rows=run.rows)
