"""The mirror's entry of one run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from worker.ledger.records import WalkState
from worker.observe.walk_rate import WalkRate
from worker.runtime.observer import RunInfo

PACE = "pace"
#: Waits during which the run gains rows all the same: their time counts for its rate.
_AT_WORK = (PACE, "other hands")
_MEMORY = Path("/proc/self/statm")


class MirrorEntry:
    """The mirror's entry of one run. Its values are computed when it is written."""

    # Defaults are class attributes, because most runs end before they are written.
    values: Mapping[str, str | int | float] = MappingProxyType({})
    changed = True
    ended = False
    #: Whether the attempt has begun: a claimed run that has to wait for a place or for its rate has not.
    began = False
    #: Whether Redis has the entry, or may have it from another attempt.
    shown = False
    #: The span of the attempt, as a `traceparent`.
    span = ""
    throttled_seconds = 0.0
    throttled_at: float | None = None
    #: Seconds of waits that are no part of the walk's rate.
    stopped_seconds = 0.0
    is_stopped = False

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.started = time.time()

    @cached_property
    def pace(self) -> WalkRate:
        """The rate of the run, in seconds without the waits of throttles, and the time left."""
        return WalkRate()

    def show_pace(self) -> None:
        """Write rate and time left, as far as it is known."""
        self.fields["rate"] = round(self.pace.rate, 1)
        if self.pace.seconds_left is not None:
            self.fields["eta_seconds"] = round(self.pace.seconds_left)
        elif "eta_seconds" in self.fields:
            self.fields["eta_seconds"] = ""

    @property
    def fields(self) -> dict[str, str | int | float]:
        """The values of one entry, separate from the defaults."""
        assert isinstance(self.values, dict)  # noqa: S101
        return self.values

    def first_values(self, worker: str) -> dict[str, str | int | float]:
        """Return the fields that a run has from its start."""
        run = self.run
        return {
            "job": run.job,
            "state": "running",
            "worker": worker,
            "queue": run.queue,
            "attempt": run.attempt,
            "started_at": format_time(self.started),
            "error": "",
            **({"helps": run.helps} if run.helps else {}),
            **({"span": self.span} if self.span else {}),
        }

    def note_ranges(self, walk: WalkState | None) -> None:
        """Note the hands and the ranges of a walk that several runs share."""
        if walk is not None:
            self.fields.update({"hands": walk.hands, "ranges": walk.ranges, "ranges_done": walk.done})

    def note_wait(self, kind: str | None) -> None:
        """Note that the walk waits for a kind of throttle, or continues (None)."""
        if kind is not None and self.throttled_at is None:
            self.throttled_at, self.is_stopped = time.monotonic(), kind not in _AT_WORK
        elif kind is None and self.throttled_at is not None:
            waited = time.monotonic() - self.throttled_at
            self.throttled_seconds += waited
            self.stopped_seconds += waited if self.is_stopped else 0.0
            self.throttled_at, self.is_stopped = None, False
            self.fields["throttled_seconds"] = round(self.throttled_seconds, 1)

    def note_pace(self, seconds: float) -> None:
        """Note that the walk waits for its pace after a batch: without the wait, the first batch shows another rate."""
        if isinstance(self.values.get("rows"), int) and "rate" in self.values:
            self.pace.hold(self.at_work() + seconds)
            self.show_pace()

    def at_work(self) -> float:
        """Return a clock that stops while the walk is throttled by load, which passes; a pace is the walk's rate."""
        now = self.throttled_at if self.is_stopped and self.throttled_at is not None else time.monotonic()
        return now - self.stopped_seconds


def format_time(seconds: float) -> str:
    """Return a time in seconds since 1970 in ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def read_memory() -> int | None:
    """Return the resident memory of this process in bytes; None where there is no /proc."""
    try:
        return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def escape(text: str) -> str:
    """Return a text with lone surrogates escaped, which UTF-8 cannot encode."""
    return text.encode(errors="backslashreplace").decode()


def encodable(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the values of a hash or stream with lone surrogates escaped."""
    return {name: escape(value) if isinstance(value, str) else value for name, value in values.items()}
