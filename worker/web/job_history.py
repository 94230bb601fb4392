"""The last events, and the last runs of a job: of the ledger, and of the events for runs that it does not have."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, cast, get_args

from worker.ledger.records import RunRecord
from worker.web.backend import Backend
from worker.web.bodies import EventListQuery
from worker.web.event_hub import Message, is_event_id, order_of
from worker.web.fields import Page, invalid_cursor, make_cursor, read_count, read_cursor, read_moment
from worker.web.operations import Call
from worker.web.run_reads import describe_event
from worker.web.views import EventView, JobRunView, RunState

_RUNS = 100
_ENDS = ("succeeded", "incomplete", "dead", "cancelled")
_AT_WORK = ("started", "resumed", "stalled")
#: The end of the id of a helper run: it is a part of another run.
_HELPER = re.compile(r"(:|^)hand-\d+:(\d+|[0-9a-f]{64})$", re.ASCII)


async def list_job_runs(call: Call) -> Page[JobRunView]:
    """Return the last hundred runs of a job, newest first."""
    job = call.path["job"]
    return await call.backend.reads.get(("job runs", job), lambda: _list_job_runs(call.backend, job))


async def _list_job_runs(backend: Backend, job: str) -> Page[JobRunView]:
    found = {run.id: _describe_record(run) for run in await backend.ledger.list_runs(job=job, limit=_RUNS)}
    for run in _read_events(await backend.event_log.list_all(), job):
        found.setdefault(run.id, run)
    newest = sorted(found.values(), key=lambda run: (run.began_at, run.id), reverse=True)
    return Page[JobRunView](items=newest[:_RUNS])


def _describe_record(run: RunRecord) -> JobRunView:
    return JobRunView(
        id=run.id,
        state=cast(RunState, run.state if run.state in get_args(RunState) else "unknown"),
        attempt=run.attempt,
        began_at=run.created_at,
        finished_at=run.finished_at,
        seconds=None if run.finished_at is None else (run.finished_at - run.created_at).total_seconds(),
        rows=run.rows,
        error=run.error,
    )


def _read_events(events: list[Message], job: str) -> list[JobRunView]:
    """Return the runs of a job that its events tell of. A run whose start is no longer there is left out."""
    ends: dict[str, tuple[datetime, Message]] = {}
    found: dict[str, dict[str, Any]] = {}
    newest: dict[str, str] = {}
    for event in events:  # newest first
        at, kind = read_moment(event.fields.get("at")), event.fields.get("event", "")
        if event.fields.get("job") != job or not event.run_id or at is None or _HELPER.search(event.run_id):
            continue
        newest.setdefault(event.run_id, kind)
        if kind in _ENDS and event.run_id not in found:
            ends.setdefault(event.run_id, (at, event))
        elif kind == "started":
            known = found.setdefault(event.run_id, {"attempt": read_count(event.fields.get("attempt"))})
            known["began_at"] = at  # the oldest start is read last
    return [_describe_run(run_id, values, ends.get(run_id), newest[run_id]) for run_id, values in found.items()]


def _describe_run(run_id: str, values: dict[str, Any], end: tuple[datetime, Message] | None, newest: str) -> JobRunView:
    """Return a run that has ended, or that its newest event shows at work or back in the queue."""
    state = end[1].fields["event"] if end is not None else "running" if newest in _AT_WORK else "waiting"
    return JobRunView(
        id=run_id,
        state=cast(RunState, state),
        finished_at=None if end is None else end[0],
        seconds=None if end is None else max(0.0, (end[0] - values["began_at"]).total_seconds()),
        rows=None,
        error=None if end is None else end[1].fields.get("error"),
        **values,
    )


async def list_events(call: Call) -> Page[EventView]:
    """Return a page of the events that Redis has, newest first."""
    query: EventListQuery = call.query
    place = read_cursor(query.cursor, str)
    if place is not None and not is_event_id(place[0]):
        raise invalid_cursor()
    found: list[EventView] = []
    for event in await call.backend.event_log.list_all():
        if (place is None or _is_before(event.id, place[0])) and _is_chosen(event, query):
            found.append(describe_event(event))
            if len(found) == query.limit:
                return Page[EventView](items=found, next_cursor=make_cursor(event.id))
    return Page[EventView](items=found)


def _is_before(event_id: str, other: str) -> bool:
    return order_of(event_id) < order_of(other)


def _is_chosen(event: Message, query: EventListQuery) -> bool:
    fields = event.fields
    if query.event is not None and fields.get("event") != query.event:
        return False
    if query.job is not None and fields.get("job") != query.job:
        return False
    return query.search is None or query.search.lower() in " ".join(fields.values()).lower()
