"""Runs since they were last run again: when they began, how long they took, and the error that they wait after."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from worker.errors import InvalidPayload
from worker.ledger.records import RunRecord
from worker.queue import keys
from worker.queue.decoding import read_json
from worker.web.attempts import Attempt, find_life, group_attempts, measure
from worker.web.backend import Backend
from worker.web.event_kinds import ENDS
from worker.web.fields import read_moment
from worker.web.views import RunView

R = TypeVar("R", bound=RunView)

#: States of a run that no worker has.
_IN_QUEUE = ("waiting", "deferred", "paused")


async def add_lives(backend: Backend, runs: Sequence[R]) -> list[R]:
    """Return runs with their begin, their duration and their attempts since they were last run again."""
    if not runs:
        return []
    attempts = group_attempts(await backend.event_log.list_all(), [run.id for run in runs])
    return [run.model_copy(update=_describe(run, attempts[run.id])) for run in runs]


def _describe(run: RunView, attempts: Sequence[Attempt]) -> dict[str, Any]:
    has_ended = run.state in ENDS
    if run.state in _IN_QUEUE and not attempts and not run.in_ledger and (run.attempt or 0) <= 1:
        # A worker that claims a run and finds it paused, or over a limit, writes a mirror although no attempt begins.
        return dict.fromkeys(("attempt", "worker", "began_at", "started_at", "seconds")) | {"attempts": 0}
    created = run.created_at if run.in_ledger else run.started_at
    life = find_life(attempts, created_at=created, has_ended=has_ended, attempt=run.attempt)
    waits = not has_ended and run.state != "running" and bool(attempts)
    return {
        "began_at": life.began_at,
        "seconds": measure(life.began_at, run.finished_at),
        "attempts": life.attempts,
        "retry_error": attempts[-1].error if waits and attempts[-1].outcome == "failed" else None,
        "worker": None if run.state in _IN_QUEUE else run.worker,
    }


async def read_due_times(backend: Backend, records: Sequence[RunRecord]) -> dict[str, datetime]:
    """Return when runs of the ledger are due that wait in their queues and that no worker has claimed, by id."""
    waiting = [one for one in records if one.finished_at is None and one.state != "running"]
    if not waiting:
        return {}
    pipeline = backend.client.redis.pipeline(transaction=False)
    for one in waiting:
        pipeline.exists(keys.IN_PROGRESS + one.id)
        pipeline.zscore(one.queue, one.id)
    answers = await backend.client.command(pipeline.execute(raise_on_error=False))
    found = {}
    for at, one in enumerate(waiting):
        claimed, score = answers[2 * at : 2 * at + 2]
        due = read_moment(score / 1000) if claimed == 0 and isinstance(score, float) else None
        if due is not None:
            found[one.id] = due
    return found


def note_due(values: dict[str, Any], due: datetime | None) -> dict[str, Any]:
    """Return the values of a run with its due time. The ledger has no state for a run that waits for that.

    A paused run is parked in its queue for about an hour: it is due when the pause is removed.
    """
    if due is None or due <= datetime.now(UTC):
        return values | {"due_at": due}
    state = values["state"]
    return values | {
        "due_at": None if state == "paused" else due,
        "state": "deferred" if state == "waiting" else state,
    }


def note_enqueued(run: R, payload: bytes | None) -> R:
    """Return a run that has not begun with the time at which it was enqueued, from its payload."""
    if run.began_at is not None or run.created_at is not None or run.state not in _IN_QUEUE:
        return run
    try:
        milliseconds = read_json(payload or b"", "the payload")["et"]
    except (InvalidPayload, KeyError, TypeError):
        return run
    at = read_moment(milliseconds / 1000) if isinstance(milliseconds, int | float) else None
    return run.model_copy(update={"created_at": at})
