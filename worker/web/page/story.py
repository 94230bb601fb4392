"""The story of a run on one line of time: what it did when, and what happened to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from worker.web.attempts import RETRIES, list_attempts
from worker.web.fields import read_moment, read_number
from worker.web.page.pieces import WORK, Piece, divide
from worker.web.page.sentences import describe
from worker.web.views import BatchView, EventView, RunDetail

_MOST_SPANS = 400
_ADJACENT = 1e-6
#: Samples are drawn together until they have this part of the line: work and throttle would alternate in it.
_BLOCK = 0.025
#: A part of the time that is shorter than both is not in the legend.
_LEAST_SHARE_SECONDS = 0.05
_LEAST_SHARE = 0.001
#: A run that is taken over has two events at once: an attempt starts, and continues.
_MOMENT = timedelta(seconds=0.5)
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
    "stalled": "made no progress",
}
#: In the legend alone.
_SHARES = {"lock": "waited for locks", _ENDED: "had ended, before it was run again"}


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
    delays = _list_delays(run, known, batches, story)
    pieces = divide(parts, batches, delays, least=(ended - begun) * _BLOCK)
    story.spans = _draw(story, pieces)
    last = known[-1][1] if known else None
    attempts = {one.began: one.name for one in list_attempts(event.fields for _, event in known)}
    story.moments = [
        Moment(at, _ICONS.get(event.event, event.event), _state(event), text, story.place(at))
        for at, event in known
        for text in [describe(event, run.quarantined if event is last else None, attempt=attempts.get(at))]
    ]
    story.shares = _sum_up(story, pieces)
    reasons = [reason for one in batches for reason in one.seconds if reason not in WORK]
    story.reasons = list(dict.fromkeys([*reasons, *(one.reason for one in delays if one.reason)]))
    return story


def _list_parts(
    run: RunDetail, events: Iterable[tuple[datetime, EventView]], batches: Sequence[BatchView], story: Story
) -> list[tuple[str, datetime, datetime]]:
    """Return what the run did when, by its events: the times between two of them."""
    parts: list[tuple[str, datetime, datetime]] = []
    kind, since = "waiting", story.begun
    for at, event in events:
        if event.event == "ordered" and kind == _ENDED and event.fields.get("order") in RETRIES:
            kind, since = "waiting", at
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
    paused = _find_pause(run) if kind == "waiting" else None
    if paused is not None:
        at = min(max(since, paused), story.ended)
        parts.append((kind, since, at))
        kind, since = "paused", at
    parts.append((kind, since, story.ended))
    if parts[-1][0] == _ENDED:
        parts.pop()
    return [part for part in parts if part[2] > part[1]]


def _find_pause(run: RunDetail) -> datetime | None:
    """Return when a run that waits in the queue was paused there; None if it is not paused."""
    if not run.paused_by or run.state not in ("waiting", "deferred", "paused"):
        return None
    known = [one.at for one in run.pauses if one.at is not None]
    if known:
        return min(known)  # each of them holds it back
    return run.updated_at or datetime.now(UTC)


def _list_delays(
    run: RunDetail, events: Sequence[tuple[datetime, EventView]], batches: Sequence[BatchView], story: Story
) -> list[Piece]:
    """Return the times without progress, and the present throttle, which no sample has yet."""
    found: list[Piece] = []
    for at, event in events:
        if event.event == "stalled":
            since = at - timedelta(seconds=read_number(event.fields.get("seconds")) or 0.0)
            later = [one.at for one in batches if one.at > at]
            later += [one for one, next_event in events if one > at and next_event.event in (*_AFTER, *_ENDS)]
            is_over = bool(later) or run.stalled_since is None
            found.append(Piece("stalled", since, min(later, default=at) if is_over else story.ended))
    if run.stalled_since is not None and not any(one.end == story.ended for one in found):
        found.append(Piece("stalled", run.stalled_since, story.ended))
    if run.throttled and run.state == "running" and run.stalled_since is None:
        reason, last = run.throttled_by or run.throttled, batches[-1] if batches else None
        since = run.throttled_since or story.ended
        if last is not None and _find_throttle(last) == reason:  # the throttle of the last sample lasts until now
            since = min(since, last.at)
        found.append(Piece("throttled", min(since, story.ended), story.ended, reason))
    return found


def _find_throttle(sample: BatchView) -> str | None:
    """Return the throttle that most of the time of a sample went to; None if most of it was work."""
    waits = {reason: seconds for reason, seconds in sample.seconds.items() if reason not in WORK}
    if sum(waits.values()) <= sum(sample.seconds.values()) / 2:
        return None
    return max(waits, key=lambda one: waits[one])


def _draw(story: Story, pieces: Sequence[Piece]) -> list[Span]:
    """Return the spans of the line: equal neighbours become one."""
    whole = (story.ended - story.begun).total_seconds()
    least = whole / _MOST_SPANS if len(pieces) > _MOST_SPANS else 0.0
    spans: list[Span] = []
    for piece in pieces:
        kind = "running" if piece.kind == "lock" else piece.kind
        place, width = story.place(piece.begin), 100 * piece.seconds / whole
        last = spans[-1] if spans else None
        is_same = last is not None and (last.kind, last.reason) == (kind, piece.reason)
        is_adjacent = last is not None and abs(last.place + last.width - place) < _ADJACENT
        if last is not None and is_adjacent and (is_same or piece.seconds < least):
            spans[-1] = replace(last, width=place + width - last.place)
        elif kind != _ENDED:
            spans.append(Span(kind, place, width, piece.reason))
    return spans


def _sum_up(story: Story, pieces: Iterable[Piece]) -> list[Share]:
    """Return what the time went to: the sums of the pieces that the line is drawn from."""
    found: dict[tuple[str, str, str], float] = {}
    for piece in pieces:
        name = f"throttled: {piece.reason}" if piece.reason else _SHARES.get(piece.kind, KINDS.get(piece.kind, ""))
        key = (name, "running" if piece.kind == "lock" else piece.kind, piece.reason)
        found[key] = found.get(key, 0.0) + piece.seconds
    least = min(_LEAST_SHARE_SECONDS, _LEAST_SHARE * (story.ended - story.begun).total_seconds())
    shares = [Share(name, kind, seconds, reason) for (name, kind, reason), seconds in found.items() if seconds > least]
    return sorted(shares, key=lambda one: -one.seconds)


def _state(event: EventView) -> str:
    if event.event in ("started", "resumed"):
        return "running"
    return {"retry": "dead", "ordered": "held", "drained": "draining"}.get(event.event, event.event)
