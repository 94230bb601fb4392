"""The running jobs of a worker: runs and completes each claimed job, and abandons it if its code does not end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.attempt.cancellation import Reason
from worker.errors import format_error
from worker.queue.claims import Claim
from worker.runtime.execution import Execution
from worker.runtime.executor import JobExecutor
from worker.runtime.health import Counters
from worker.runtime.job_completer import JobCompleter
from worker.runtime.leases import Leases

logger = logging.getLogger("longhaul.worker")


class RunningJobs:
    """Runs claimed jobs, each in a task of its own.

    Args:
        executor: runs the jobs.
        completer: writes their outcomes.
        leases: renews the leases of running jobs.
        counters: counts ended executions.
        on_end: called when a slot becomes free.

    Attributes:
        tasks: the task of each claimed job, by run id.
    """

    def __init__(
        self,
        *,
        executor: JobExecutor,
        completer: JobCompleter,
        leases: Leases,
        counters: Counters,
        on_end: Callable[[], None],
    ) -> None:
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._executor = executor
        self._completer = completer
        self._leases = leases
        self._counters = counters
        self._on_end = on_end
        self._executions: dict[str, Execution] = {}
        #: Tasks of abandoned jobs whose code still runs. They take no slot and own no run.
        self._abandoned: set[asyncio.Task[None]] = set()
        self._begun = asyncio.Event()

    def __len__(self) -> int:
        return len(self._executions)

    def __iter__(self) -> Iterator[Execution]:
        return iter(list(self._executions.values()))

    def get(self, run_id: str) -> Execution | None:
        """Return the execution of a job; None if this worker does not have the job."""
        return self._executions.get(run_id)

    @property
    def abandoned_count(self) -> int:
        """Number of abandoned jobs whose code still runs."""
        return len(self._abandoned)

    def start(self, claim: Claim) -> None:
        """Run a claimed job."""
        run_id = claim.run_id
        if claim.expired:
            if self._leases.is_held(run_id):
                logger.warning("lease expired run=%s: no other worker has claimed the job, it continues here", run_id)
                return
            logger.warning("job taken over run=%s attempt=%d: its lease had expired", run_id, claim.attempt)
        if (replaced := self._executions.get(run_id)) is not None:
            replaced.interrupt("lost")  # another worker had the job in the meantime
        execution = self._executor.prepare(claim)
        self._executions[run_id] = execution
        self._begun.set()
        self._leases.add(claim)
        self._track(execution, self._process(execution))

    def _track(self, execution: Execution, work: Coroutine[Any, Any, None]) -> None:
        self.tasks[execution.claim.run_id] = task = asyncio.get_running_loop().create_task(
            work, name=execution.claim.run_id
        )
        task.add_done_callback(partial(self._ended, execution))

    async def _process(self, execution: Execution) -> None:
        """Run one claimed job and write its outcome."""
        is_left = True
        try:
            outcome = await self._executor.run(execution)
            if execution.is_abandoned:
                logger.warning("abandoned job ended job=%s run=%s: its outcome is ignored", *execution.labels)
            else:
                await self._completer.complete(execution, outcome)
                self._counters.count(outcome)
            is_left = False
        except (RedisError, SQLAlchemyError, OSError) as error:
            _log_left_to_lease(execution, error)
        finally:
            await execution.close(discard=is_left)

    def abandon(self, execution: Execution) -> None:
        """Stop waiting for a job's own code: its run ends or is retried."""
        run_id = execution.claim.run_id
        body = execution.abandon()
        if body is None:
            return
        abandoned = self.tasks[run_id]
        self._abandoned.add(abandoned)
        abandoned.add_done_callback(self._abandoned.discard)
        self._track(execution, self._process_abandoned(execution, body))

    async def _process_abandoned(self, execution: Execution, body: asyncio.Task[Any]) -> None:
        try:
            outcome = await self._executor.abandon(execution, body)
            await self._completer.complete(execution, outcome)
            self._counters.count(outcome)
        except (RedisError, SQLAlchemyError, OSError) as error:
            _log_left_to_lease(execution, error)

    def _ended(self, execution: Execution, task: asyncio.Task[None]) -> None:
        run_id = execution.claim.run_id
        if task in self._abandoned:
            return  # it was abandoned before: another task writes the outcome of its run
        if self._executions.get(run_id) is execution:  # otherwise it was requeued and claimed again
            self._leases.remove(execution.claim)
            del self._executions[run_id]
            del self.tasks[run_id]
        self._on_end()
        if not task.cancelled() and task.exception() is not None:
            logger.error("job left to its lease run=%s: unexpected error", run_id, exc_info=task.exception())

    def interrupt(self, reason: Reason) -> None:
        """Cancel the code of all jobs."""
        for execution in self:
            execution.interrupt(reason)

    def abandon_all(self) -> None:
        """Abandon all jobs whose own code still runs."""
        for execution in self:
            self.abandon(execution)

    async def wait_for_any(self) -> None:
        """Wait until there is a job."""
        if not self._executions:
            self._begun.clear()
            await self._begun.wait()

    async def wait(self, seconds: float) -> None:
        """Wait until the current jobs have ended, including abandoned ones, or until the timeout."""
        if not self.tasks:
            return
        _, late = await asyncio.wait(set(self.tasks.values()), timeout=max(0.0, seconds))
        if not late:
            await asyncio.sleep(0)  # their callbacks run first


def _log_left_to_lease(execution: Execution, error: BaseException) -> None:
    # The job is claimed again when its lease expires.
    logger.error("job left to its lease job=%s run=%s error=%s", *execution.labels, format_error(error))
