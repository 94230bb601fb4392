"""Runs a second, from counters that only grow: those of the mirror, by job and state."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

#: Seconds over which a rate is taken.
WINDOW_SECONDS = 10.0
_HISTORY = 60

Counts = Mapping[tuple[str, str], int]


class Rates:
    """The last seconds of all counters."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Counts]] = deque()
        self._history: deque[float] = deque(maxlen=_HISTORY)

    def add(self, at: float, counts: Counts) -> None:
        """Take in what the counters say at a moment (seconds, by the server's clock)."""
        if self._looks:
            then, before = self._looks[-1]
            if at <= then or any(counts.get(name, 0) < number for name, number in before.items()):
                self._looks.clear()  # another server, or one that has lost its data: nothing to compare with
            else:
                grown = sum(counts.values()) - sum(before.values())
                self._history.append(grown / (at - then))
        self._looks.append((at, counts))
        while len(self._looks) > 2 and self._looks[1][0] <= at - WINDOW_SECONDS:
            self._looks.popleft()

    def of(self, state: str, job: str | None = None) -> float | None:
        """Return how many runs came to this state a second, of a job or of all; None before there are two looks."""
        if len(self._looks) < 2:
            return None
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        names = [name for name in after if name[1] == state and job in (None, name[0])]
        return sum(after[name] - before.get(name, 0) for name in names) / (now - then)

    @property
    def history(self) -> tuple[float, ...]:
        """Ends of any kind a second, at each of the last looks."""
        return tuple(self._history)
