"""Runs one job in a test, as a worker does, without a queue."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import ParamSpec, TypeVar

from worker.attempt.attempt import Attempt
from worker.attempt.context import JobContext
from worker.attempt.control import AttemptControl, NoControl
from worker.attempt.offload import JobPools
from worker.db.engine import Database
from worker.errors import AttemptReleased
from worker.job.definition import Job
from worker.job.middleware import load_middleware, run_hooks, through
from worker.ledger import Ledger, RunSpec
from worker.settings import Settings
from worker.throttles import Throttle

P = ParamSpec("P")
R = TypeVar("R")


class JobRunner:
    """Runs jobs as a worker does, without a queue.

    Args:
        database: the database that the jobs work on.
        settings: the settings, for example of batches.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self.settings = settings
        self._pools: JobPools = JobPools(
            max_threads=settings.worker.max_threads, max_processes=settings.worker.max_job_processes
        )

    def close(self) -> None:
        """End the threads and processes of plain functions."""
        self._pools.close()

    async def __call__(self, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a job to its end, also behind its sleeps. Arguments and result go through JSON, as in production.

        Returns:
            The result that a client would get.

        Raises:
            BaseException: the error that the job raises. Batches that it has committed stay committed.
        """
        run_id = uuid.uuid4().hex
        while True:
            try:
                return await self.attempt(job, run_id, *args, **kwargs)
            except AttemptReleased as released:
                if released.reason != "sleep":
                    raise
                await asyncio.sleep(released.delay_seconds)

    async def attempt(self, job: Job[P, R], run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one attempt of a run. Another call with its id is its next attempt, which resumes from the ledger."""
        ctx = self.context(job.name, run_id, throttles=job.throttles)
        attempt = ctx._attempt
        try:
            arguments = job.decode_arguments([], job.encode_arguments(args, kwargs))
            try:
                hooks = run_hooks(load_middleware(self.settings.worker.middleware))
                value = await through(hooks, ctx, lambda: attempt.run(job, ctx, arguments))
                text = job.encode_result(value)
            except BaseException as error:
                if attempt.ledger_run is not None:
                    failed = not isinstance(error, AttemptReleased)
                    await attempt.ledger_run.release("waiting", failed=failed, error=str(error) if failed else None)
                raise
            if attempt.ledger_run is not None:
                await attempt.ledger_run.finish("succeeded", result=text)
        finally:
            await attempt.close()
        result: R = job.decode_result_json(text)
        return result

    def context(
        self,
        job: str = "test",
        run_id: str | None = None,
        *,
        max_attempts: int = 5,
        control: AttemptControl | None = None,
        throttles: tuple[Throttle, ...] = (),
    ) -> JobContext:
        """Return a context outside of any worker."""

        chosen = run_id or uuid.uuid4().hex
        attempt = Attempt(
            run_id=chosen,
            job=job,
            number=1,
            spec=lambda: RunSpec(chosen, job, "arq:queue", "{}"),
            settings=self.settings,
            database=self._database,
            ledger=Ledger(self._database, f"test-{uuid.uuid4().hex[:6]}"),
            control=control or NoControl(),
            pools=self._pools,
            max_attempts=max_attempts,
            throttles=throttles,
        )
        return JobContext(attempt, enqueued_at=datetime.now(UTC))
