"""How many rows a batch has: a fixed number, or as many as take the target time.

The rule is that of GitLab's batched background migrations (docs.gitlab.com, "Batch optimization"): the time efficiency
(seconds of a batch over target seconds) as a moving average; the size follows it, and grows by a fifth at most. Here it
doubles while a batch takes less than a quarter of its time, so that a long walk reaches its size within seconds.
"""

from __future__ import annotations

from typing import Literal, Protocol

from worker.errors import UnsupportedStatement
from worker.settings import BatchSettings

Size = int | Literal["auto"]

_SMOOTHING = 0.4  # weight of the newest batch in the moving average
_GROWTH = 1.2
_SLOW_START = 0.25
_FULL = (0.9, 0.95)  # efficiencies at which the size stays


class BatchSizer(Protocol):
    """Decides the size of the next batch."""

    size: int

    def note(self, rows: int, seconds: float) -> None:
        """Take note of a batch: the rows that were asked for, and its time in seconds."""


class FixedSizer:
    """The same size for each batch.

    Args:
        size: Rows.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def note(self, rows: int, seconds: float) -> None:
        """Keep the size."""


class AdaptiveSizer:
    """The size that takes `batch.target_seconds`, between `batch.min_size` and `batch.max_size`.

    Args:
        rules: The settings of section `batch`.
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
