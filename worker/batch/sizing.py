"""How many rows a batch has: as many as are said, or as many as take the time that is aimed at.

The rule is that of GitLab's batched background migrations (docs.gitlab.com, "Batch optimization"): the time efficiency,
seconds of a batch over seconds aimed at, as a moving average; the size follows it, by a fifth at most where it grows.
Here it doubles while a batch takes less than a quarter of its time, so that a long walk is at its pace after seconds.
"""

from __future__ import annotations

from typing import Literal, Protocol

from worker.errors import UnsupportedStatement
from worker.settings import BatchSettings

Size = int | Literal["auto"]

_SMOOTHING = 0.4  # weight of the newest batch in the moving average
_GROWTH = 1.2
_SLOW_START = 0.25
_FULL = (0.9, 0.95)  # efficiencies that are as they should be


class BatchSizer(Protocol):
    """Says the size of the next batch."""

    size: int

    def note(self, rows: int, seconds: float) -> None:
        """Take note of a batch that was committed: rows that were asked for, and its time."""


class FixedSizer:
    """The same size always.

    Args:
        size: rows.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def note(self, rows: int, seconds: float) -> None:
        """Nothing changes."""


class AdaptiveSizer:
    """The size that takes `batch.target_seconds`, between `batch.min_size` and `batch.max_size`.

    Args:
        rules: of the settings.
    """

    def __init__(self, rules: BatchSettings) -> None:
        self._rules = rules
        self._row_seconds: float | None = None
        self.size = min(max(rules.first_size, rules.min_size), rules.max_size)

    def note(self, rows: int, seconds: float) -> None:
        """Take note of a batch."""
        each = seconds / max(1, rows)
        known = self._row_seconds
        self._row_seconds = each if known is None else known + _SMOOTHING * (each - known)
        efficiency = self._row_seconds * self.size / self._rules.target_seconds
        if _FULL[0] <= efficiency <= _FULL[1]:
            return
        factor = 2.0 if efficiency < _SLOW_START else min(_GROWTH, _FULL[1] / efficiency)
        self.size = min(max(round(self.size * factor), self._rules.min_size), self._rules.max_size)


def make_sizer(size: Size | None, rules: BatchSettings, *, kind: str) -> BatchSizer:
    """Return the pace of a loop.

    Args:
        size: rows, "auto", or None for `batch.size` of the settings.
        rules: of the settings.
        kind: of the loop, for the error.

    Raises:
        UnsupportedStatement: a size below one.
    """
    wanted = rules.size if size is None else size
    if wanted == "auto":
        return AdaptiveSizer(rules)
    if not isinstance(wanted, int) or wanted < 1:
        raise UnsupportedStatement(f'{kind}: size={wanted!r}: a batch has at least one row, or is size="auto"')
    return FixedSizer(wanted)
