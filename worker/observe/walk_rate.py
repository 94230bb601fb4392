"""The rate of a run and the time that is left, from moments at which its rows and its part of a walk were noted."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

#: The time that the rate is an average of.
_RATE_SECONDS = 10.0
#: With several hands, the rate is an average of at least so many batches of one: those of all may end at once.
_SHARED_BATCHES = 4
#: The time by whose rate of rows the time left is estimated, and the time between two marks of it.
_RECENT_SECONDS = 60.0
_RECENT_STEP = 0.25
#: The time by which the rows for a part of the walk are estimated, and the time between two marks of it.
_LONG_SECONDS = 900.0
_LONG_STEP = 10.0
#: The largest factor between the rows for a part of the walk in the last minute and before: with a larger one, the keys
#: say nothing of the rows that are left.
_STEADY = 2.0
#: The largest factor between the rates of the last seconds and of the last minute, at the same pace.
_SAME_PACE = 1.5


class _Mark(NamedTuple):
    at: float
    rows: int
    share: float | None


class WalkRate:
    """The rate of the rows of one run, over all hands of its walk, and the time left.

    Times are seconds of a clock that the caller stops while a throttle holds the walk.

    Attributes:
        rate: Rows per second over the last seconds.
        seconds_left: The time until the end of the walk; None if it is unknown, or if the rows are spread too unevenly
            over the part of the walk that is noted.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.seconds_left: float | None = None
        self._recent: deque[_Mark] = deque()
        self._long: deque[_Mark] = deque()
        self._first: _Mark | None = None
        self._last: _Mark | None = None
        self._hands = 1
        self._batch_rows = 0
        self._batch_at: float | None = None
        self._batch_seconds = 0.0
        self._is_begin_noted = False
        self._paced_since = -math.inf

    def begin(self, now: float, rows: int) -> None:
        """Note that an attempt begins, behind the rows of earlier ones."""
        self.clear()
        self._is_begin_noted = True
        self._first = self._last = _Mark(now, rows, 0.0 if rows == 0 else None)
        self._keep(self._first)

    def clear(self) -> None:
        """Forget all marks: another loop begins."""
        self._recent.clear()
        self._long.clear()
        self._first = self._batch_at = None
        self._paced_since = -math.inf

    def note(self, now: float, rows: int, share: float | None, *, hands: int = 1, batch_rows: int = 0) -> None:
        """Note the rows of the run and the part of the walk, from 0 to 1, after a batch.

        Args:
            now: The time.
            rows: The rows over all hands.
            share: The part of the walk that is done; None if it is unknown.
            hands: The number of hands.
            batch_rows: The rows of the batch; 0 for rows of other hands alone.
        """
        self._hands = hands
        if self._is_begin_noted and not batch_rows:
            self.begin(now, rows)  # the ranges of a shared walk, which have the rows of earlier attempts
        self._is_begin_noted = False
        if batch_rows:
            self._batch_seconds = 0.0 if self._batch_at is None else now - self._batch_at
            self._batch_rows, self._batch_at = batch_rows, now
        self._last = _Mark(now, rows, share)
        self._keep(self._last)
        self._compute(None)

    def hold(self, until: float) -> None:
        """Note that the walk waits for its pace after a batch, whose rows take the wait as well."""
        if self._last is not None and self._recent:
            self._compute(until)

    def _keep(self, mark: _Mark) -> None:
        _append(self._recent, mark, _RECENT_SECONDS, _RECENT_STEP)
        is_first_share = mark.share is not None and len(self._long) == 1 and self._long[0].share is None
        _append(self._long, mark, _LONG_SECONDS, 0.0 if is_first_share else _LONG_STEP)

    def _compute(self, held_until: float | None) -> None:
        several = 0.0 if self._hands == 1 else _SHARED_BATCHES * self._batch_seconds
        self.rate = self._rate_over(max(_RATE_SECONDS, several), held_until)
        recent = self._rate_over(max(_RECENT_SECONDS, several), held_until)
        if self._last is not None and self.rate > 0 and not 1 / _SAME_PACE <= recent / self.rate <= _SAME_PACE:
            # Another pace: what was before says nothing of the time left.
            self._paced_since = self._last.at - max(_RATE_SECONDS, several)
            recent = self.rate
        self.seconds_left = self._estimate(recent)

    def _rate_over(self, seconds: float, held_until: float | None) -> float:
        assert self._last is not None  # noqa: S101
        now, rows, _ = self._last
        begin = self._mark_before(max(now - seconds, self._paced_since))
        if held_until is not None and begin is self._first:
            now = held_until  # each batch has had its wait but the last one
        elif held_until is not None and self._hands == 1:
            now, rows = held_until, rows + self._batch_rows  # the next batch, which ends the wait
        return (rows - begin.rows) / (now - begin.at) if now > begin.at else 0.0

    def _mark_before(self, moment: float) -> _Mark:
        """Return the last mark before a moment, or the first of all."""
        marks = self._recent if self._recent[0].at <= moment else self._long
        if len(marks) > 1 and marks[1].at <= moment:
            for mark in reversed(marks):
                if mark.at <= moment:
                    return mark
        return marks[0]

    def _estimate(self, rate: float) -> float | None:
        last = self._last
        if last is None or last.share is None or last.share >= 1 or rate <= 0 or not self._long:
            return None
        oldest = next((mark for mark in self._long if mark.share is not None), last)  # an attempt begins without
        before = self._mark_before(last.at - _RECENT_SECONDS)
        rows_in_all = _density(oldest, last)
        rows_of_late = rows_in_all if before.share is None else _density(before, last)
        if rows_in_all is None or rows_of_late is None:
            return None
        if not 1 / _STEADY <= rows_of_late / rows_in_all <= _STEADY:
            return None
        return (1 - last.share) * rows_in_all / rate


def _append(marks: deque[_Mark], mark: _Mark, window: float, step: float) -> None:
    """Append a mark. Of those before the window, the last one stays, for a slow walk."""
    while len(marks) > 1 and marks[1].at < mark.at - window:
        marks.popleft()
    if not marks or mark.at - marks[-1].at >= step:
        marks.append(mark)


def _density(begin: _Mark, end: _Mark) -> float | None:
    """Return the rows of a whole walk that is as dense as between two marks; None if that is unknown."""
    if begin.share is None or end.share is None or end.share <= begin.share or end.rows <= begin.rows:
        return None
    return (end.rows - begin.rows) / (end.share - begin.share)
