"""`worker try`: runs some batches of a job for real, and rolls each of them back."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from worker.attempt.context import JobContext
from worker.batch.loops import make_chunks_source, make_stream_source, make_sweep_source
from worker.batch.options import SourceOptions, check_options
from worker.batch.selection import Selection, check_expression
from worker.db.engine import Database
from worker.errors import InvalidArguments, LonghaulError, UsageError, format_error
from worker.job.definition import Job
from worker.job.propagation import current_job, looking_command
from worker.plan.plan import (
    describe_refused_write,
    ensure_has_loops,
    make_looking_attempt,
    name_subset,
    was_refused,
)
from worker.plan.trial_walk import BatchTrial, TrialEnds, TrialState, TrialWalk
from worker.settings import Settings

_COMMAND = "worker try"
#: Said with each trial: a rollback does not reach it.
NOTE = (
    "every batch was rolled back; effects outside of the database, such as requests, files and mails, are real, and so "
    "are numbers that sequences have given out"
)


@dataclass(frozen=True)
class Trial:
    """The changes that some batches of a job would make.

    Attributes:
        job: The name of the job.
        batches: The batches, in their order.
        error: The error of the job; empty if it has none.
        note: What a rollback does not undo.
    """

    job: str
    batches: list[BatchTrial] = field(default_factory=list)
    error: str = ""
    note: str = NOTE


class TrialContext(JobContext):
    """The context of a job that is tried. Its sessions outside of batches are read-only."""

    _trial: TrialState
    _is_looking = True

    @property
    def rows_done(self) -> int:
        """The rows of the batches that were tried."""
        return sum(batch.rows for batch in self._trial.batches)

    def chunks(self, statement: Any, **options: Any) -> Any:
        """Try a loop of chunks."""
        return self._try("chunks", make_chunks_source(statement, options), options)  # type: ignore[arg-type]

    def stream(self, statement: Any, **options: Any) -> Any:
        """Try a stream."""
        source = make_stream_source(self._attempt, statement, options)  # type: ignore[arg-type]
        return self._try("stream", source, options)

    def sweep(self, statement: Any, **options: Any) -> Coroutine[Any, Any, int]:
        """Try a sweep."""
        source = make_sweep_source(self._attempt, statement, options)  # type: ignore[arg-type]
        return self._attempt.calls.track("ctx.sweep", self._try("sweep", source, options).run())

    def walk(self, source: Any, **options: Any) -> Any:
        """Try the walk of a source."""
        check_options("walk", options, SourceOptions)
        if self._trial.selection is not None or self._trial.key is not None:
            raise InvalidArguments(f"{source.kind}: --subset, --from and --key are for loops over tables")
        return self._try(source.kind, source, options)

    def step(self, name: str, /, *_: Any, **__: Any) -> Any:
        """Refuse a durable step, whose function may have effects that cannot be rolled back."""
        raise UsageError(
            f"{_COMMAND} runs no durable step, because a rollback would not reach its effects, and the job begins "
            f"{name!r}: loops behind it are not tried. Move them to a job of their own to try them"
        )

    async def sleep(self, seconds: float, *, name: str | None = None) -> None:
        """Do not sleep."""

    async def sleep_until(self, moment: datetime, *, name: str | None = None) -> None:
        """Do not sleep."""

    async def _has_selection(self) -> bool:
        return self._trial.selection is not None or self._trial.key is not None

    def _try(self, kind: str, source: Any, options: Mapping[str, Any]) -> TrialWalk:
        return TrialWalk(self._trial, kind, source, options)


async def try_job(
    job: Job[..., Any],
    settings: Settings,
    arguments: Mapping[str, Any] | None = None,
    *,
    batches: int = 3,
    rows: int | None = 50,
    key: list[Any] | None = None,
    selection: Selection | None = None,
) -> Trial:
    """Run some batches of a job for real, and roll each of them back.

    A write outside of a batch, such as in `ctx.transaction()` or by `ctx.bulk`, is refused, because it could not be
    rolled back with a batch; commands to the queue are refused too. Other effects outside of the database are real.

    Args:
        job: The job.
        settings: The settings of its worker.
        arguments: The arguments of the job.
        batches: The number of batches, over all loops.
        rows: Rows in a batch; None for the size of the loop.
        key: The key of the only row to process, as JSON values.
        selection: The part of each walk to process.

    Returns:
        The changes of each batch.

    Raises:
        InvalidArguments: The arguments do not match the job's signature, or the subset is not one expression.
        UsageError: The job has no durable loop, and its code is not run.
        ServerUnavailable: PostgreSQL does not answer.
    """
    values = job.decode_arguments([], job.encode_arguments([], dict(arguments or {})))
    ensure_has_loops(job, _COMMAND)
    if batches < 1 or (rows is not None and rows < 1):
        raise InvalidArguments(f"{_COMMAND}: give at least 1 batch and 1 row")
    if selection is not None and selection.subset is not None:
        check_expression(selection.subset)
    reader = Database(settings, "try", job_name=current_job.get, read_only=True)
    writer = Database(settings, "try", job_name=current_job.get)
    try:
        await writer.check()
        attempt = make_looking_attempt(job, settings, reader, _COMMAND)
        trial = TrialState(attempt, writer, batches, rows, selection, key)
        return await _run(job, values, trial)
    finally:
        await reader.close()
        await writer.close()


async def _run(job: Job[..., Any], values: Mapping[str, Any], trial: TrialState) -> Trial:
    ctx = TrialContext(trial.attempt)
    ctx._trial = trial
    token, looking, error = current_job.set(job.name), looking_command.set(_COMMAND), ""
    try:
        await job.function(ctx, **values)
        if trial.open_walk is not None:
            await trial.open_walk.leave()
    except TrialEnds:
        pass
    except InvalidArguments:
        raise
    except (Exception, SystemExit) as raised:  # noqa: BLE001 - a job raises anything
        shown = name_subset(format_error(raised), raised, trial.selection)
        error = describe_refused_write(raised) if was_refused(raised) else shown
    finally:
        current_job.reset(token)
        looking_command.reset(looking)
        trial.attempt.calls.clear()
        if trial.open_walk is not None:
            await trial.open_walk.close()
    if error and not trial.batches:
        raise LonghaulError(f"job {job.name}: {error}")
    return Trial(job.name, trial.batches, error)
