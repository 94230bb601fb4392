"""The last runs of a job: of the ledger, and of the events for runs that it does not have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import cast, get_args

from worker.errors import InvalidPayload
from worker.ledger.records import RunRecord
from worker.queue.decoding import read_json
from worker.web.attempts import Attempt, find_life, group_attempts, measure
from worker.web.backend import Backend
from worker.web.event_hub import Message
from worker.web.event_kinds import ENDS
from worker.web.event_log import read_targets
from worker.web.fields import Page, read_moment
from worker.web.operations import Call
from worker.web.views import JobRunView, RunState

_RUNS = 100
_AT_WORK = ("started", "resumed", "stalled")
#: The end of the id of a helper run: it is a part of another run.
_HELPER = re.compile(r"(:|^)hand-\d+:(\d+|[0-9a-f]{64})$", re.ASCII)


def is_helper(run_id: str) -> bool:
    """Return whether an id is that of a helper run."""
    return _HELPER.search(run_id) is not None


async def list_job_runs(call: Call) -> Page[JobRunView]:
    """Return the last hundred runs of a job, newest first."""
    job = call.path["job"]
    return await call.backend.reads.get(("job runs", job), lambda: _list_job_runs(call.backend, job))


async def _list_job_runs(backend: Backend, job: str) -> Page[JobRunView]:
    events = await backend.event_log.list_all()
    records = {run.id: run for run in await backend.ledger.list_runs(job=job, limit=_RUNS)}
    newest = _find_newest(events, job)
    attempts = group_attempts(events, {*records, *newest})
    found = [_describe_record(run, attempts[run.id]) for run in records.values()]
    found += [
        run
        for run_id, event in newest.items()
        if run_id not in records and (run := _describe_run(run_id, event, attempts[run_id])) is not None
    ]
    found.sort(key=lambda run: (run.began_at, run.id), reverse=True)
    return Page[JobRunView](items=found[:_RUNS])


def _describe_record(run: RunRecord, attempts: Sequence[Attempt]) -> JobRunView:
    has_ended = run.finished_at is not None
    life = find_life(attempts, created_at=run.created_at, has_ended=has_ended, attempt=run.attempt)
    begun = life.began_at or run.created_at
    return JobRunView(
        id=run.id,
        state=cast(RunState, run.state if run.state in get_args(RunState) else "unknown"),
        attempt=life.attempts,
        began_at=begun,
        finished_at=run.finished_at,
        seconds=measure(begun, run.finished_at),
        rows=run.rows,
        error=run.error,
    )


def _find_newest(events: Iterable[Message], job: str) -> dict[str, Message]:
    """Return the newest event of each run of a job, by id."""
    newest: dict[str, Message] = {}
    for event in events:  # newest first
        if event.fields.get("job") == job and event.run_id and not is_helper(event.run_id):
            newest.setdefault(event.run_id, event)
    return newest


def find_newest_runs(events: Sequence[Message], jobs: Collection[str]) -> dict[str, JobRunView]:
    """Return the run of each job that began last, as far as the events tell, by the name of the job.

    Args:
        events: all events, newest first.
        jobs: the names of the jobs.
    """
    newest: dict[str, Message] = {}
    began: dict[str, str] = {}
    for event in events:
        job, run_id = event.fields.get("job", ""), event.run_id
        if job in jobs and run_id and not is_helper(run_id):
            newest.setdefault(run_id, event)
            if event.fields.get("event") == "started":
                began.setdefault(job, run_id)
    attempts = group_attempts(events, set(began.values()))
    runs = {job: _describe_run(run_id, newest[run_id], attempts[run_id]) for job, run_id in began.items()}
    return {job: run for job, run in runs.items() if run is not None}


def list_ids_by_hand(events: Iterable[Message]) -> set[str]:
    """Return the ids of the runs that operators have enqueued, as far as the events tell."""
    found: set[str] = set()
    for event in events:
        order = event.fields.get("order") if event.fields.get("event") == "ordered" else None
        if order == "enqueue":
            found |= read_targets(event)
        elif order == "cron_run":
            found |= {run_id for run_id in [_read_run(event)] if run_id}
    return found


def _read_run(order: Message) -> str | None:
    """Return the id of the run that an order has enqueued; None if the order names none."""
    try:
        details = read_json(order.fields.get("details", "{}").encode(), "the order")
    except InvalidPayload:
        return None
    run_id = details.get("run") if isinstance(details, dict) else None
    return run_id if isinstance(run_id, str) else None


def _describe_run(run_id: str, newest: Message, attempts: Sequence[Attempt]) -> JobRunView | None:
    """Return a run that its events tell of; None if its begin is no longer there."""
    kind, at = newest.fields.get("event", ""), read_moment(newest.fields.get("at"))
    has_ended = kind in ENDS and at is not None
    finished_at = at if has_ended else None
    life = find_life(attempts, created_at=None, has_ended=has_ended)
    if life.began_at is None:
        return None
    return JobRunView(
        id=run_id,
        state=cast(RunState, kind if has_ended else "running" if kind in _AT_WORK else "waiting"),
        attempt=life.attempts,
        began_at=life.began_at,
        finished_at=finished_at,
        seconds=measure(life.began_at, finished_at),
        rows=None,
        error=newest.fields.get("error") if has_ended else None,
    )
