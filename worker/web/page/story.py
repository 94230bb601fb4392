"""The story of a run on one line of time: what it did when, and what happened to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from worker.errors import InvalidPayload
from worker.queue.decoding import read_json
from worker.web.fields import read_moment, read_number
from worker.web.page.text import duration, number
from worker.web.views import BatchView, EventView, RunDetail

_CELLS = 400
#: A run that is taken over has two events at once: an attempt starts, and continues.
_MOMENT = timedelta(seconds=0.5)
#: The reasons of a sample that are the walk's own work.
_WORK = ("work", "lock")
#: Throttles that can be told apart on the line of time.
TONES = 6
_AFTER = {
    "started": "running",
    "resumed": "running",
    "retry": "waiting",
    "drained": "waiting",
    "yielded": "waiting",
    "paused": "paused",
    "asleep": "asleep",
    "lost": "gone",
}
_ENDED = "ended"
_ENDS = ("succeeded", "incomplete", "dead", "cancelled")
_ICONS = {
    "started": "running",
    "resumed": "takeover",
    "retry": "dead",
    "drained": "draining",
    "yielded": "next",
    "paused": "paused",
    "asleep": "deferred",
    "stalled": "stalled",
    "lost": "lost",
    "ordered": "held",
}
#: In the words of the page.
KINDS = {
    "waiting": "waited in the queue",
    "running": "worked",
    "throttled": "throttled",
    "paused": "paused",
    "asleep": "slept",
    "gone": "without a worker",
}
_ORDERS = {
    "pause": "Paused",
    "resume": "Resumed",
    "cancel": "Cancelled",
    "retry": "Enqueued again",
    "drain": "Worker drained",
    "quarantine_retry": "Quarantined rows enqueued again",
    "quarantine_discard": "Quarantined rows deleted",
}


@dataclass(frozen=True)
class Moment:
    """Something that happened.

    Attributes:
        at: when.
        icon: its symbol.
        state: its kind, for the colour.
        text: a sentence.
        place: its place on the line of time, 0 to 100.
    """

    at: datetime
    icon: str
    state: str
    text: str
    place: float = 0.0


@dataclass(frozen=True)
class Span:
    """A part of the line of time.

    Attributes:
        kind: what the run did, one of `KINDS`.
        place: where it begins, 0 to 100.
        width: its width.
        reason: of a throttle; empty for other kinds.
    """

    kind: str
    place: float
    width: float
    reason: str = ""


class Share(NamedTuple):
    """The use of a part of the run's time.

    Attributes:
        name: in the words of the page.
        kind: one of `KINDS`.
        seconds: the time.
        reason: of a throttle; empty for other kinds.
    """

    name: str
    kind: str
    seconds: float
    reason: str = ""


@dataclass
class Story:
    """The story of a run.

    Attributes:
        begun: the left end of the line.
        ended: its right end: the end of the run, or now.
        spans: what the run did when.
        moments: what happened to it, oldest first.
        shares: what its time went to, the longest first.
        reasons: the reasons of throttles, in the order in which they began: each has a letter, a colour and a pattern.
    """

    begun: datetime
    ended: datetime
    spans: list[Span] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def tone(self, reason: str) -> int:
        """Return the number of the colour and pattern of a reason; the last one is that of all further reasons."""
        return min(self.reasons.index(reason), TONES - 1)

    def place(self, at: datetime) -> float:
        """Return the place of a time on the line, 0 to 100."""
        whole = (self.ended - self.begun).total_seconds()
        return min(100.0, max(0.0, 100 * (at - self.begun).total_seconds() / whole)) if whole > 0 else 0.0


def tell(run: RunDetail, events: Sequence[EventView], batches: Sequence[BatchView]) -> Story | None:
    """Return the story of a run; None if nothing is known but its state."""
    known = [(at, event) for event in events if (at := read_moment(event.fields.get("at"))) is not None]
    begun = run.created_at or run.started_at or (known[0][0] if known else None)
    if begun is None:
        return None
    begun = min([begun, *(at for at, event in known if event.event in _AFTER)])
    ended = max(begun, run.finished_at or datetime.now(UTC))
    story = Story(begun, ended)
    parts = _list_parts(run, known, batches, story)
    story.spans = _paint(story, parts, batches)
    story.moments = [
        Moment(at, _ICONS.get(event.event, event.event), _state(event), describe(event), story.place(at))
        for at, event in known
    ]
    story.shares = _sum_up(parts, batches)
    story.reasons = list(dict.fromkeys(reason for one in batches for reason in one.seconds if reason not in _WORK))
    return story


def _list_parts(
    run: RunDetail, events: Iterable[tuple[datetime, EventView]], batches: Sequence[BatchView], story: Story
) -> list[tuple[str, datetime, datetime]]:
    """Return what the run did when, by its events: the times between two of them."""
    parts: list[tuple[str, datetime, datetime]] = []
    kind, since = "waiting", story.begun
    for at, event in events:
        if event.event not in _AFTER and event.event not in _ENDS:
            continue
        if kind == "running" and event.event in ("started", "resumed") and at - since > _MOMENT:  # its worker died
            seen = max((one.at for one in batches if since <= one.at < at), default=since)
            parts.append((kind, since, seen))
            kind, since = "gone", seen
        parts.append((kind, since, at))
        kind, since = _AFTER.get(event.event, _ENDED), at
    if kind == "waiting" and run.started_at is not None and not parts:  # the events are gone, or were never there
        parts.append((kind, since, run.started_at))
        kind, since = "running", run.started_at
    parts.append((kind, since, story.ended))
    # A run that ended may have been run again: the time between is no part of its story.
    return [part for part in parts if part[0] != _ENDED and part[2] > part[1]]


def _paint(story: Story, parts: Iterable[tuple[str, datetime, datetime]], batches: Sequence[BatchView]) -> list[Span]:
    """Return the spans of the line: it is painted in cells, and equal neighbours become one."""
    cells = [("", "")] * _CELLS

    def paint(cell: tuple[str, str], begin: datetime, end: datetime, *, over: str | None = None) -> None:
        first = int(story.place(begin) / 100 * _CELLS)
        for at in range(first, min(_CELLS, max(first + 1, round(story.place(end) / 100 * _CELLS)))):
            if over is None or cells[at][0] == over:
                cells[at] = cell

    for kind, begin, end in parts:
        paint((kind, ""), begin, end)
    before: dict[str, datetime] = {}
    for sample in batches:
        begin = before.get(sample.step, sample.at)
        waits = {reason: seconds for reason, seconds in sample.seconds.items() if reason not in _WORK}
        if begin < sample.at and sum(waits.values()) > (sample.at - begin).total_seconds() / 2:
            paint(("throttled", max(waits, key=lambda one: waits[one])), begin, sample.at, over="running")
        before[sample.step] = sample.at
    spans: list[Span] = []
    for cell, found in itertools.groupby(range(_CELLS), key=lambda at: cells[at]):
        places = list(found)
        if cell[0]:
            spans.append(Span(cell[0], 100 * places[0] / _CELLS, 100 * len(places) / _CELLS, cell[1]))
    return spans


def _sum_up(parts: Iterable[tuple[str, datetime, datetime]], batches: Sequence[BatchView]) -> list[Share]:
    """Return what the time went to: the reasons of the samples, and the times between the attempts."""
    found: dict[tuple[str, str, str], float] = {}
    sampled = 0.0
    for sample in batches:
        for reason, seconds in sample.seconds.items():
            name = "worked" if reason == "work" else "waited for locks" if reason == "lock" else f"throttled: {reason}"
            key = (name, "running", "") if reason in _WORK else (name, "throttled", reason)
            found[key] = found.get(key, 0.0) + seconds
            sampled += seconds
    for kind, begin, end in parts:
        key = (KINDS[kind] if kind != "running" else "worked", kind, "")
        if kind != "running" or not sampled:
            found[key] = found.get(key, 0.0) + (end - begin).total_seconds()
    shares = [Share(name, kind, seconds, reason) for (name, kind, reason), seconds in found.items() if seconds >= 0.05]
    return sorted(shares, key=lambda one: -one.seconds)


def _state(event: EventView) -> str:
    if event.event in ("started", "resumed"):
        return "running"
    return {"retry": "dead", "ordered": "held", "drained": "draining"}.get(event.event, event.event)


def describe(event: EventView) -> str:
    """Return what an event says, as a sentence."""
    fields = event.fields
    worker = fields.get("worker", "a worker")
    again = read_number(fields.get("delay_seconds"))
    later = f"; again in {duration(again)}" if again else ""
    error = fields.get("error", "")
    texts = {
        "started": f"Attempt {fields.get('attempt', '')} began on {worker}.",
        "resumed": f"{worker} took it over, behind row {number(read_number(fields.get('rows')))}.",
        "retry": f"The attempt failed: {error}{later}.",
        "drained": f"{worker} drained: the run went back to the queue.",
        "yielded": "It gave its slot to runs that waited.",
        "paused": "It paused between two batches.",
        "asleep": f"It sleeps{later}.",
        "stalled": f"No progress for {duration(read_number(fields.get('seconds')))}.",
        "lost": f"{worker} lost it: another worker has it.",
        "succeeded": "It succeeded.",
        "incomplete": f"It ended, and rows are left undone: {error}.",
        "dead": f"It failed for good: {error}.",
        "cancelled": "It was cancelled.",
    }
    return _describe_order(fields) if event.event == "ordered" else texts.get(event.event, event.event)


def _describe_order(fields: dict[str, str]) -> str:
    order, by = fields.get("order", "?"), fields.get("by", "?")
    details, targets = _read(fields.get("details"), {}), _read(fields.get("targets"), [])
    name = ", ".join(str(one) for one in targets[:3]) if isinstance(targets, list) else ""
    text = _ORDERS.get(order, order.capitalize())
    if order == "pace" and isinstance(details, dict):
        pace = read_number(details.get("rows_per_second"))
        text = "Pace removed" if pace is None else f"Pace set to {number(pace)} rows/s"
    return f"{text} by {by}{f' ({name})' if name else ''}."


def _read(text: str | None, default: Any) -> Any:
    try:
        return read_json((text or "").encode(), "the order")
    except InvalidPayload:
        return default
