"""The runs that ended last: of the ledger, and of the events for runs that it does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from worker.errors import LonghaulError
from worker.web.attempts import Attempt, find_life, group_attempts, measure
from worker.web.backend import Backend
from worker.web.event_hub import Message
from worker.web.event_kinds import ENDS
from worker.web.event_log import EventLog
from worker.web.fields import Page, read_count, read_moment
from worker.web.job_history import is_helper
from worker.web.operations import Call
from worker.web.views import EndedRunView

_MOST = 10
_SECONDS = 5.0


async def list_ended(call: Call) -> Page[EndedRunView]:
    """Return the runs that ended last, without short ones, from one read for all requests of some seconds."""
    return await call.backend.reads.get("ended", lambda: _list_ended(call.backend), seconds=_SECONDS)


async def _list_ended(backend: Backend) -> Page[EndedRunView]:
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(LonghaulError):  # without PostgreSQL, the runs of Redis are shown all the same
        found = {one.id: asdict(one) for one in await backend.ledger.list_ended(_MOST)}
    log = backend.event_log
    events = await log.list_all()
    for run_id, told in _read_ends(log, events).items():
        found[run_id] = found.get(run_id, {"began_at": None}) | told
    attempts = group_attempts(events, found)
    runs = [_describe_run(values, attempts[run_id]) for run_id, values in found.items()]
    return Page[EndedRunView](items=sorted(runs, key=lambda run: (run.finished_at, run.id), reverse=True)[:_MOST])


def _describe_run(values: dict[str, Any], attempts: Sequence[Attempt]) -> EndedRunView:
    life = find_life(attempts, created_at=values["began_at"], has_ended=True)
    seconds = measure(life.began_at, values["finished_at"])
    return EndedRunView(**values | {"attempt": life.attempts, "began_at": life.began_at, "seconds": seconds})


def _read_ends(log: EventLog, events: Iterable[Message]) -> dict[str, dict[str, Any]]:
    """Return the end of the runs that ended last, from their events, by id."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for event in events:  # newest first
        run_id, kind = event.run_id, event.fields.get("event", "")
        if run_id and run_id not in seen:
            seen.add(run_id)
            if kind in ENDS and len(found) < _MOST and not log.is_brief(event) and not is_helper(run_id):
                found |= _describe_end(run_id, kind, event.fields)
    return found


def _describe_end(run_id: str, state: str, fields: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    at = read_moment(fields.get("at"))
    if at is None:
        return {}
    known: dict[str, Any] = {"id": run_id, "job": fields.get("job", "?"), "state": state, "finished_at": at}
    known |= {"error": fields["error"]} if fields.get("error") else {}
    return {run_id: known | ({"rows": read_count(fields["rows"])} if "rows" in fields else {})}
