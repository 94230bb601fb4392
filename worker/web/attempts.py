"""The attempts of a run, over all the times that it was run, and the runs that process its rows in quarantine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.errors import InvalidPayload
from worker.queue.decoding import read_json
from worker.web.event_hub import Message
from worker.web.event_kinds import ENDS
from worker.web.fields import read_count, read_moment
from worker.web.views import EventView

#: The run goes back to the queue, and the attempt continues when a worker claims it again.
_HALTS = ("paused", "drained", "yielded", "asleep")
#: Orders that run an ended run again.
RETRIES = ("retry", "dead_letters_retry")
_MOST_LINKS = 5


@dataclass
class Attempt:
    """An attempt of a run.

    Attributes:
        number: from 1, since the run was last run again.
        worker: the worker that had it last.
        began: its begin.
        ended: its end; None if it has not ended.
        outcome: the state of the run at its end; `failed` if the run is tried again, `lost` if its worker died;
            `running`, `waiting` or `paused` before its end.
        error: its error; empty for none.
        reruns: how often the run had ended before, and was run again.
        by: who has ordered the last time, if this is the first attempt since; empty if it is not known.
    """

    number: int
    worker: str
    began: datetime
    ended: datetime | None = None
    outcome: str = "running"
    error: str = ""
    reruns: int = 0
    by: str = ""

    @property
    def is_again(self) -> bool:
        """Whether the run had ended, and began again with this attempt."""
        return self.reruns > 0 and self.number == 1

    @property
    def name(self) -> str:
        """Its number as text, which says from when on it counts."""
        return f"{self.number} since it was run again" if self.reruns else str(self.number)

    def close(self, at: datetime, outcome: str, error: str = "") -> None:
        """Note how it ended."""
        self.ended, self.outcome, self.error = at, outcome, error


@dataclass(frozen=True)
class Life:
    """A run since it was last run again, or since its first attempt.

    Attributes:
        began_at: the begin of its first attempt since; None if it has none yet, or if that is not known.
        attempts: how many attempts have begun since. One that continues after a pause, a drain or a sleep is one.
    """

    began_at: datetime | None
    attempts: int


def list_attempts(events: Iterable[Mapping[str, str]]) -> list[Attempt]:
    """Return the attempts that the events of a run tell of, oldest first. The events are oldest first, too."""
    found: list[Attempt] = []
    by = ""
    for fields in events:
        at, kind, last = read_moment(fields.get("at")), fields.get("event"), found[-1] if found else None
        if at is None:
            continue
        is_open = last is not None and last.ended is None
        if kind == "ordered" and fields.get("order") in RETRIES:
            by = fields.get("by", "")
        elif kind == "started":
            if last is not None and is_open and last.outcome != "running":  # it continues
                last.worker, last.outcome = fields.get("worker", ""), "running"
                continue
            if last is not None and is_open:
                last.close(at, "lost")
            found.append(_follow(last, at, fields, by))
        elif last is not None and is_open and kind in _HALTS:
            last.outcome = "paused" if kind == "paused" else "waiting"
        elif last is not None and is_open and kind is not None and kind in ("retry", *ENDS):
            last.close(at, "failed" if kind == "retry" else kind, fields.get("error", ""))
    return found


def _follow(last: Attempt | None, at: datetime, fields: Mapping[str, str], by: str) -> Attempt:
    """Return the attempt that follows another one. Of the first one that is known, the event tells the number."""
    worker = fields.get("worker", "")
    if last is None:
        return Attempt(read_count(fields.get("attempt")) or 1, worker, at)
    if last.outcome in ENDS:
        return Attempt(1, worker, at, reruns=last.reruns + 1, by=by)
    return Attempt(last.number + 1, worker, at, reruns=last.reruns)


def find_life(
    attempts: Sequence[Attempt], *, created_at: datetime | None, has_ended: bool, attempt: int | None = None
) -> Life:
    """Return when a run began the last time that it was run, and its attempts since.

    Args:
        attempts: those that its events tell of.
        created_at: its first begin, if that is known from elsewhere: it counts unless the run was run again.
        has_ended: whether the run has ended.
        attempt: the number of its last attempt that the ledger or the mirror has: older events may be gone.
    """
    if attempts and attempts[-1].outcome in ENDS and not has_ended:
        return Life(None, 0)  # it was run again, and waits
    first = next((one for one in reversed(attempts) if one.number == 1), None)
    began = first.began if first is not None else None
    if first is None or not first.is_again:
        began = min((at for at in (began, created_at) if at is not None), default=None)
    return Life(began, max(attempts[-1].number if attempts else 0, attempt or 0))


def measure(begun: datetime | None, ended: datetime | None) -> float | None:
    """Return the seconds from begin to end; None if one is unknown. Clocks differ: it is not below 0."""
    return None if begun is None or ended is None else max(0.0, (ended - begun).total_seconds())


def group_attempts(events: Iterable[Message], run_ids: Collection[str]) -> dict[str, list[Attempt]]:
    """Return the attempts of runs, by id.

    Args:
        events: all events, newest first.
        run_ids: the runs.
    """
    known: dict[str, list[Mapping[str, str]]] = {run_id: [] for run_id in run_ids}
    for event in events:
        if event.run_id in known:
            known[event.run_id].append(event.fields)
    return {run_id: list_attempts(reversed(fields)) for run_id, fields in known.items()}


def list_row_runs(events: Iterable[EventView]) -> list[str]:
    """Return the ids of the runs that process rows in quarantine of a run, newest first."""
    found: list[str] = []
    for event in events:
        if event.event == "ordered" and event.fields.get("order") == "quarantine_retry":
            try:
                details = read_json(event.fields.get("details", "{}").encode(), "the order")
            except InvalidPayload:
                continue
            runs = details.get("runs") if isinstance(details, dict) else None
            found += [one for one in runs if isinstance(one, str)] if isinstance(runs, list) else []
    return list(reversed(found))[:_MOST_LINKS]
