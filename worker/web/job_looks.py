"""Looks at a job before it runs: `worker plan` and `worker try`. They run the job's own code in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import Field

from worker.plan import BatchTrial, LoopPlan
from worker.plan import try_job as run_trial
from worker.plan.plan import plan_part
from worker.web.backend import Backend
from worker.web.bodies import PlanBody, TryBody
from worker.web.fields import Text, View
from worker.web.operations import Call
from worker.web.problems import Problem

_MOST_AT_ONCE = 2
_MOST_SECONDS = 30


class PlanView(View):
    """The plan of a job, as `worker plan` shows it."""

    job: Text
    loops: list[LoopPlan]
    ended: Text = Field(description="Why the plan ends before the end of the job; empty if it does not.")


class TrialView(View):
    """The changes of some batches of a job, as `worker try` shows them. Each was rolled back."""

    job: Text
    batches: list[BatchTrial]
    error: Text = Field(description="The error of the job; empty if it has none.")
    note: Text = Field(description="What a rollback does not undo.")


async def plan_job(call: Call) -> PlanView:
    """Return what each loop of a job would do, found without changing anything."""
    body: PlanBody = call.body
    job = (await call.backend.load_jobs()).find(call.path["job"])
    values = job.decode_arguments([], body.arguments)
    async with _look(call.backend):
        plan = await plan_part(job, call.backend.settings, values, None)
    return PlanView(job=plan.job, loops=plan.loops, ended=plan.ended)


async def try_job(call: Call) -> TrialView:
    """Run some batches of a job, and roll each of them back. Return what each would change."""
    body: TryBody = call.body
    job = (await call.backend.load_jobs()).find(call.path["job"])
    values = job.decode_arguments([], body.arguments)
    async with _look(call.backend):
        trial = await run_trial(job, call.backend.settings, values, batches=body.batches, rows=body.rows)
    return TrialView(job=trial.job, batches=trial.batches, error=trial.error, note=trial.note)


@asynccontextmanager
async def _look(backend: Backend) -> AsyncIterator[None]:
    """Hold one of the places for looks: each has connections of its own.

    Raises:
        Problem: all places are taken, or the look takes too long.
    """
    if backend.looks >= _MOST_AT_ONCE:
        detail = f"{_MOST_AT_ONCE} plans or trials are running: try again in a moment"
        raise Problem(503, "too-many-looks", detail, headers={"Retry-After": "2"})
    backend.looks += 1
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            yield
    except TimeoutError:
        detail = f"it has not ended within {_MOST_SECONDS} s, and was stopped; nothing was changed"
        raise Problem(503, "look-too-long", detail) from None
    finally:
        backend.looks -= 1
