"""Runs one job in a test, as a worker does, without a queue."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Literal, ParamSpec, TypeVar, overload

from worker.attempt.attempt import Attempt
from worker.attempt.context import JobContext
from worker.attempt.control import AttemptControl, NoControl
from worker.attempt.offload import JobPools
from worker.batch import Progress
from worker.db.engine import Database
from worker.errors import AttemptReleased, InvalidArguments
from worker.job.definition import Job
from worker.job.middleware import configured_middleware, run_hooks, through
from worker.ledger import Ledger, RunSpec
from worker.settings import Settings
from worker.throttles import Throttle

P = ParamSpec("P")
R = TypeVar("R")


class _Killed(BaseException):
    """The attempt ends as if its process had been killed."""


class _DieAfterBatch(NoControl):
    """Ends an attempt at the boundary behind a batch.

    Args:
        batch: number of the batch, from 1, over all loops.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.batches = 0

    async def order(self, run_id: str, job: str) -> Literal["pause", "cancel"] | None:
        """End the attempt if the batch is committed."""
        if self.batches >= self._batch:
            raise _Killed
        return None

    def report(self, progress: Progress, rows: int) -> None:
        """Count a committed batch; `ctx.progress` reports none."""
        self.batches += progress.batches > 0


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

    @overload
    async def __call__(self, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def __call__(self, job: Job[..., R], /, *args: Any, die_after_batch: int, **kwargs: Any) -> R: ...
    async def __call__(  # type: ignore[misc]  # a job with an argument of that name cannot be given it here
        self, job: Job[..., R], /, *args: Any, die_after_batch: int | None = None, **kwargs: Any
    ) -> R:
        """Run a job to its end, also behind its sleeps. Arguments and result go through JSON, as in production.

        Args:
            job: the job.
            args: its arguments.
            die_after_batch: the first attempt ends as if its process had been killed after the commit of this batch,
                counted from 1 over all loops; the next attempt continues from the ledger. Unlike after SIGKILL, the
                job's `finally` blocks run.
            kwargs: its arguments.

        Returns:
            The result that a client would get.

        Raises:
            AssertionError: the job has ended before the batch `die_after_batch`.
            InvalidArguments: the arguments do not match the signature, `job` is none, or `die_after_batch` is below 1.
            BaseException: the error that the job raises. Batches that it has committed stay committed.
        """
        if not isinstance(job, Job):
            name = getattr(job, "__name__", repr(job))
            raise InvalidArguments(f"{name} is not a job: decorate its function with @job")
        run_id = uuid.uuid4().hex
        values = job.encode_arguments(args, kwargs)
        if die_after_batch is not None:
            if type(die_after_batch) is not int or die_after_batch < 1:
                raise InvalidArguments(f"die_after_batch={die_after_batch!r}: batches are counted from 1")
            control = _DieAfterBatch(die_after_batch)
            try:
                await self._attempt(job, run_id, values, control)
            except _Killed:
                pass
            else:
                raise AssertionError(f"{job.name} has ended after {control.batches} batches, before it could die")
        return await self.run_values(job, run_id, [], values)

    async def run_values(self, job: Job[..., R], run_id: str, args: list[Any], kwargs: dict[str, Any]) -> R:
        """Run a job to its end, with JSON values as arguments, as a worker does with those of a payload."""
        values = job.encode_arguments([], job.decode_arguments(args, kwargs)) if args else kwargs
        while True:
            try:
                return await self._attempt(job, run_id, values, NoControl())
            except AttemptReleased as released:
                if released.reason != "sleep":
                    raise
                await asyncio.sleep(released.delay_seconds)

    async def attempt(self, job: Job[P, R], run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one attempt of a run. Another call with its id is its next attempt, which resumes from the ledger."""
        return await self._attempt(job, run_id, job.encode_arguments(args, kwargs), NoControl())

    async def _attempt(self, job: Job[..., R], run_id: str, values: dict[str, Any], control: AttemptControl) -> R:
        ctx = self.context(job.name, run_id, throttles=job.throttles, control=control)
        attempt = ctx._attempt
        try:
            arguments = job.decode_arguments([], values)
            try:
                hooks = run_hooks(configured_middleware(self.settings))
                value = await through(hooks, ctx, lambda: attempt.run(job, ctx, arguments))
                text = job.encode_result(value)
            except BaseException as error:
                if attempt.ledger_run is not None and not isinstance(error, _Killed):
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
        return JobContext(attempt)
