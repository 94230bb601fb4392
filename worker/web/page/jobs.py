"""The list of jobs, and the page of a job: its form, with which runs are enqueued, planned and tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from worker.errors import LonghaulError
from worker.web.access import check_role
from worker.web.bodies import EnqueueBody, PlanBody, TryBody
from worker.web.fields import Name, Query
from worker.web.job_views import JobView
from worker.web.page import argument_form
from worker.web.page.argument_form import ArgumentField
from worker.web.page.command_lines import make_commands
from worker.web.page.form import Form
from worker.web.page.visit import Submitted, Visit
from worker.web.problems import Problem, explain_any_error, invalid
from worker.web.views import LimitView

_OPTIONS = ("id", "delay_seconds", "queue", "priority")
_TRIAL = ("batches", "rows")
_PLACE = "body.arguments."


class JobsQuery(Query):
    """The jobs to list."""

    search: Name | None = Field(None, max_length=200, description="Only jobs with this text in name or description.")


async def load_jobs(visit: Visit) -> dict[str, Any]:
    """Return the values of `jobs.html`."""
    query: JobsQuery = visit.query
    jobs: list[JobView] = (await visit.read("list_jobs")).items
    text = (query.search or "").lower()
    overview = await visit.read("show_overview")
    return {
        "jobs": [job for job in jobs if text in f"{job.name} {job.description}".lower()],
        "count": len(jobs),
        "lines": await _list_lines(visit),
        "paused": set(overview.paused),
        "running": _count_running(overview.runs),
    }


async def _list_lines(visit: Visit) -> dict[str, list[Any]]:
    """Return the cron lines by job."""
    lines: dict[str, list[Any]] = {}
    for line in (await visit.read("list_cron")).items:
        lines.setdefault(line.job, []).append(line)
    return lines


def _count_running(runs: Sequence[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for run in runs:
        if run.state == "running":
            counts[run.job] = counts.get(run.job, 0) + 1
    return counts


async def load_job(visit: Visit) -> dict[str, Any]:
    """Return the values of `job.html`."""
    job: JobView = await visit.read("show_job", visit.path)
    overview = await visit.read("show_overview")
    limits: list[LimitView] = (await visit.read("list_limits")).items
    history = (await visit.read("list_job_runs", visit.path)).items
    return {
        "job": job,
        "lines": (await _list_lines(visit)).get(job.name, []),
        "limit": next((one for one in limits if one.name == job.name), None),
        "paused": [name for name in (job.name, "*") if name in overview.paused],
        "history": history,
        "ended": [run for run in history if run.seconds is not None][::-1],
    } | _show_form(_Sent(argument_form.make_fields(job.arguments)))


@dataclass
class _Sent:
    """The form of a job, as it was sent.

    Attributes:
        fields: the fields of the arguments.
        options: the texts of the other fields, by name.
        problems: the problem of each field that is not valid, by its name.
        problem: a problem of no field; None if there is none.
    """

    fields: Sequence[ArgumentField]
    options: Mapping[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


def _show_form(sent: _Sent, **more: Any) -> dict[str, Any]:
    names = (*_OPTIONS, *_TRIAL)
    return {
        "fields_": argument_form.mark(sent.fields, sent.problems),
        "options": {name: sent.options.get(name, "") for name in names},
        "option_problems": {name: sent.problems[name] for name in names if name in sent.problems},
        "problem": sent.problem,
        "plan": None,
        "trial": None,
        "lines_": [],
    } | more


async def submit_job(visit: Visit, form: Form) -> Submitted:
    """Enqueue, plan or try the job of a form. On a problem, the form is shown again as it was sent."""
    check_role(visit.caller, "enqueue")
    job: JobView = await visit.read("show_job", visit.path)
    fields = argument_form.fill(argument_form.make_fields(job.arguments), form)
    sent = _Sent(fields, {name: form.get(name).strip() for name in (*_OPTIONS, *_TRIAL)})
    arguments, sent.problems = argument_form.read_arguments(fields)
    act = form.get("act")
    made: dict[str, Any] = {}
    if not sent.problems:
        try:
            made = await _act(visit, job, act, arguments, sent.options)
        except Problem as problem:
            _note(sent, problem)
        except (LonghaulError, SQLAlchemyError, OSError) as error:
            explained = explain_any_error(error, visit.backend.settings)
            if explained is None:
                raise
            _note(sent, explained)
    if "run" in made:
        done = f"Enqueued {made['run'].id}." if made["run"].is_new else f"{made['run'].id} was enqueued before."
        return Submitted(done=done, view="run", parameters={"run_id": made["run"].id})
    status = 422 if sent.problems or sent.problem else 200
    data = {"lines": made.get("lines_", []), "problems": sent.problems, "problem": sent.problem}
    return Submitted(_show_form(sent, **made), data=data, status=status)


async def _act(
    visit: Visit, job: JobView, act: str, arguments: dict[str, Any], options: Mapping[str, str]
) -> dict[str, Any]:
    """Do what the pressed button says. Return values for the template."""
    path = {"job": job.name}
    body: BaseModel
    if act == "plan":
        return {"plan": await visit.order("plan_job", PlanBody(arguments=arguments), path)}
    if act == "try":
        body = _read(TryBody, {"arguments": arguments, **_given(options, _TRIAL)})
        return {"trial": await visit.order("try_job", body, path)}
    body = _read(EnqueueBody, {"job": job.name, "arguments": arguments, **_given(options, _OPTIONS)})
    if act == "command":
        return {"lines_": await make_commands(visit.backend, "enqueue", path, body)}
    return {"run": await visit.order("enqueue", body)}


def _given(options: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: options[name] for name in names if options[name]}


def _read(model: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    try:
        return model.model_validate(values, strict=False)
    except ValidationError as error:
        raise invalid("body", error) from None


def _note(sent: _Sent, problem: Problem) -> None:
    """Put the parts of a problem beside their fields; what belongs to none is shown above the form."""
    known = {one.name for one in sent.fields} | {*_OPTIONS, *_TRIAL}
    rest = []
    for error in problem.errors:
        place = error.where.removeprefix(_PLACE).removeprefix("body.")
        name, _, inner = place.partition(".")
        if name in known:
            text = f"{inner}: {error.message}" if inner else error.message
            sent.problems[name] = "; ".join(filter(None, (sent.problems.get(name), text)))
        else:
            rest.append(f"{place}: {error.message}")
    if rest or not problem.errors:
        sent.problem = "; ".join(rest) or problem.detail
