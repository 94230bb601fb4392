"""`worker plan`: what each loop of a job would do, found without changing anything."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from asyncpg.exceptions import PostgresError
from sqlalchemy.exc import DBAPIError

from worker.attempt.attempt import Attempt
from worker.attempt.control import NoControl
from worker.attempt.offload import JobPools
from worker.batch.selection import Selection
from worker.db.engine import Database
from worker.db.errors import is_read_only
from worker.errors import LonghaulError, UsageError, format_error, iter_causes
from worker.job.definition import Job
from worker.job.propagation import current_job, looking_command
from worker.ledger import Ledger, RunSpec
from worker.plan.context import PlanContext, PlanEnds
from worker.plan.loop_plan import LoopPlan, LoopPlanner
from worker.settings import Settings

_COMMAND = "worker plan"
_LOOPS = frozenset({"chunks", "stream", "sweep", "walk", "lines"})


@dataclass(frozen=True)
class JobPlan:
    """The plan of a job.

    Attributes:
        job: The name of the job.
        loops: Its loops, in their order.
        ended: Why the plan could not follow the job to its end; empty if it did.
    """

    job: str
    loops: list[LoopPlan] = field(default_factory=list)
    ended: str = ""


async def make_plan(job: Job[..., Any], settings: Settings, /, **arguments: Any) -> JobPlan:
    """Plan a job without changing anything: `await make_plan(purge, settings, days=90)`.

    The job's own code runs up to its first loop whose rows decide what follows. Its sessions are READ ONLY, its loops
    hand out no rows, and its commands to the queue are refused. Code that changes something else than this database
    and the queue, such as a request to another service, takes effect.

    Args:
        job: The job.
        settings: The settings of its worker.
        **arguments: The arguments of the job.

    Returns:
        The plan of each loop.

    Raises:
        InvalidArguments: The arguments do not match the job's signature.
        UsageError: The job has no durable loop, and its code is not run.
        ServerUnavailable: PostgreSQL does not answer.
    """
    return await plan_part(job, settings, arguments, None)


async def plan_part(
    job: Job[..., Any], settings: Settings, arguments: Mapping[str, Any], selection: Selection | None
) -> JobPlan:
    """Plan a part of a job's walks; see `make_plan`."""
    values = job.decode_arguments([], job.encode_arguments([], arguments))
    ensure_has_loops(job, _COMMAND)
    database = Database(settings, "plan", job_name=current_job.get, read_only=True)
    try:
        await database.check()
        return await _follow(job, values, settings, database, selection)
    finally:
        await database.close()


async def _follow(
    job: Job[..., Any],
    values: Mapping[str, Any],
    settings: Settings,
    database: Database,
    selection: Selection | None,
) -> JobPlan:
    attempt = make_looking_attempt(job, settings, database, _COMMAND)
    ctx = PlanContext(attempt)
    planner = LoopPlanner(job.name, attempt, database, selection)
    ctx._describe, ctx._is_of_a_part = planner.describe, selection is not None
    token, looking = current_job.set(job.name), looking_command.set(_COMMAND)
    ended = ""
    try:
        await job.function(ctx, **values)
    except PlanEnds as error:
        ended = str(error)
    except (Exception, SystemExit) as error:
        if not planner.loops and not isinstance(error, LonghaulError) and not was_refused(error):
            shown = name_subset(format_error(error), error, selection)
            raise UsageError(f"job {job.name} raises before its first loop: {shown}") from error
        ended = describe_refused_write(error) if was_refused(error) else f"the job raises {format_error(error)}"
    finally:
        current_job.reset(token)
        looking_command.reset(looking)
        attempt.calls.clear()
    return JobPlan(job.name, planner.loops, ended)


def make_looking_attempt(job: Job[..., Any], settings: Settings, database: Database, command: str) -> Attempt:
    """Return an attempt that is not in the ledger, for a command that only looks at a job."""

    def refuse() -> RunSpec:
        raise UsageError(f"{command} begins no run in the ledger")

    return Attempt(
        run_id=command.replace(" ", "-"),
        job=job.name,
        number=1,
        spec=refuse,
        settings=settings,
        database=database,
        ledger=Ledger(database),
        control=NoControl(),
        pools=JobPools(max_threads=1, max_processes=1),
        max_attempts=1,
    )


def ensure_has_loops(job: Job[..., Any], command: str) -> None:
    """Raise `UsageError` for a job without a durable loop: running its code would be running the job."""
    if job.run_in != "loop":
        raise UsageError(f"job {job.name} is a plain function, without durable loops: {command} cannot look at it")
    if not any(_LOOPS & _names(code) for code in _list_codes(inspect.unwrap(job.function))):
        raise UsageError(
            f"job {job.name} has no durable loop (ctx.chunks, stream, sweep, walk): {command} would have to run all of "
            f"its code, and does not"
        )


def _list_codes(function: Any) -> Iterator[CodeType]:
    """Yield the code of a function, of the functions that it calls, and of the methods of what its factory gave it."""
    yield function.__code__
    names = _names(function.__code__)
    given = [cell.cell_contents for cell in function.__closure__ or ()]
    methods = [getattr(type(value), name, None) for value in given for name in names]
    for called in [*(function.__globals__.get(name) for name in names), *given, *methods]:
        plain = inspect.unwrap(getattr(called, "__func__", called)) if callable(called) else None
        if inspect.isfunction(plain):
            yield plain.__code__


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def name_subset(shown: str, error: BaseException, selection: Selection | None) -> str:
    """Return the text of an error; if PostgreSQL has raised it, with the subset, which is a part of the statement."""
    if selection is None or selection.subset is None or not isinstance(error, DBAPIError | PostgresError):
        return shown
    return f"{shown} [--subset {selection.subset!r} is a part of the statement]"


def was_refused(error: BaseException) -> bool:
    return any(is_read_only(cause) for cause in iter_causes(error))


def describe_refused_write(error: BaseException) -> str:
    """Return the reason of a write that the READ ONLY transaction has refused."""
    return f"the job writes outside of its loops, which is refused here: {format_error(error)}"
