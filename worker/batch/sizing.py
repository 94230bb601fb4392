"""Decides the size of a batch: a fixed number of rows, or the number that fits the target time and memory.

The rule is that of GitLab's batched background migrations (docs.gitlab.com, "Batch optimization"): the time efficiency
(seconds of a batch over target seconds) as a moving average; the size follows it, and grows by a fifth at most. Here it
doubles while a batch takes less than a quarter of its time, so that a long walk reaches its size within seconds.

Under a pace, a batch has the rows of two seconds at most: larger ones would come in bursts, with long waits between.

A batch that fails after more than its target time counts at once: its rows take at least that long. The pace is
stored with the step, so that the next attempt begins with it.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from worker.errors import UnsupportedStatement
from worker.settings import BatchSettings

Size = int | Literal["auto"]

_SMOOTHING = 0.4  # weight of the newest batch in the moving average
_GROWTH = 1.2
_SLOW_START = 0.25
_FULL = (0.9, 0.95)  # efficiencies at which the size stays
#: Seconds of a pace for the rows of one batch: with "auto", and with a size that is given.
_PACED_SECONDS, _FIXED_PACED_SECONDS = 2.0, 10.0


class BatchSizer(Protocol):
    """Decides the size of the next batch."""

    size: int

    def choose(self, pace: float | None, limit: int | None) -> int:
        """Return the rows of the next batch, under a pace in rows per second, and at most those of a retry."""

    def note(self, rows: int, seconds: float, row_bytes: float | None = None) -> None:
        """Record a batch: the requested rows, its time in seconds, and the bytes of a row."""

    def note_failure(self, rows: int, seconds: float) -> None:
        """Record a batch that failed after this many seconds."""

    def load(self, pace: dict[str, Any]) -> None:
        """Continue with the pace of an earlier attempt."""

    def dump(self) -> dict[str, Any]:
        """Return the pace as JSON values."""


class FixedSizer:
    """The same size for each batch, but for one that a pace would hold for long.

    Args:
        size: Rows.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def choose(self, pace: float | None, limit: int | None) -> int:
        """Return the size, or the rows of ten seconds of a pace: behind a batch, the walk waits and hears no order."""
        return _choose(self.size, pace, _FIXED_PACED_SECONDS, limit)

    def note(self, rows: int, seconds: float, row_bytes: float | None = None) -> None:
        """Keep the size."""

    def note_failure(self, rows: int, seconds: float) -> None:
        """Keep the size: the retry of the batch has its own limit."""

    def load(self, pace: dict[str, Any]) -> None:
        """Keep the size."""

    def dump(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class AdaptiveSizer:
    """The size that takes `batch.target_seconds`, between `batch.min_size` and `batch.max_size`.

    A batch never requests more rows than fit into `batch.max_bytes`, even if that is fewer than `batch.min_size`.

    Args:
        rules: The settings of section `batch`.
    """

    def __init__(self, rules: BatchSettings) -> None:
        self._rules = rules
        self._row_seconds: float | None = None
        self._row_bytes: float | None = None
        self.size = min(max(rules.first_size, rules.min_size), rules.max_size)

    def choose(self, pace: float | None, limit: int | None) -> int:
        """Return the size, or the rows of two seconds of a pace, even if they are fewer than `batch.min_size`."""
        return _choose(self.size, pace, _PACED_SECONDS, limit)

    def note(self, rows: int, seconds: float, row_bytes: float | None = None) -> None:
        """Record a batch, and adapt the size."""
        if row_bytes is not None:
            self._row_bytes = row_bytes
        each = seconds / max(1, rows)
        known = self._row_seconds
        self._row_seconds = each if known is None else known + _SMOOTHING * (each - known)
        efficiency = self._row_seconds * self.size / self._rules.target_seconds
        size = float(self.size)
        if not _FULL[0] <= efficiency <= _FULL[1]:
            size *= 2.0 if efficiency < _SLOW_START else min(_GROWTH, _FULL[1] / efficiency)
        self.size = self._bound(size)

    def note_failure(self, rows: int, seconds: float) -> None:
        """Adapt to the time of a failed batch, if it was longer than the target."""
        if seconds <= self._rules.target_seconds:
            return
        self._row_seconds = max(self._row_seconds or 0.0, seconds / max(1, rows))
        self.size = self._bound(min(self.size, _FULL[1] * self._rules.target_seconds / self._row_seconds))

    def load(self, pace: dict[str, Any]) -> None:
        """Continue with the pace of an earlier attempt, if the stored value is valid."""
        self._row_seconds = _read_positive(pace, "row_seconds") or self._row_seconds
        self._row_bytes = _read_positive(pace, "row_bytes") or self._row_bytes
        self.size = self._bound(_read_positive(pace, "size") or self.size)

    def dump(self) -> dict[str, Any]:
        """Return size, seconds and bytes of a row."""
        return {"size": self.size, "row_seconds": self._row_seconds, "row_bytes": self._row_bytes}

    def _bound(self, size: float) -> int:
        bounded = min(max(round(size), self._rules.min_size), self._rules.max_size)
        if self._row_bytes:
            bounded = min(bounded, max(1, int(self._rules.max_bytes / self._row_bytes)))
        return bounded


def make_sizer(size: Size | None, rules: BatchSettings, *, kind: str) -> BatchSizer:
    """Return the sizer of a loop.

    Args:
        size: Rows, "auto", or None for `batch.size` of the settings.
        rules: The settings of section `batch`.
        kind: The kind of the loop, for the error.

    Raises:
        UnsupportedStatement: The size is below one.
    """
    wanted = rules.size if size is None else size
    if wanted == "auto":
        return AdaptiveSizer(rules)
    if not isinstance(wanted, int) or wanted < 1:
        raise UnsupportedStatement(f'{kind}: size={wanted!r}: a batch has at least one row, or is size="auto"')
    return FixedSizer(wanted)


def _read_positive(pace: dict[str, Any], name: str) -> float | None:
    value = pace.get(name)
    return float(value) if isinstance(value, int | float) and 0 < value < 1e12 else None


def _choose(size: int, pace: float | None, seconds: float, limit: int | None) -> int:
    paced = size if pace is None else max(1, int(min(size, pace * seconds)))
    return paced if limit is None else min(paced, limit)
