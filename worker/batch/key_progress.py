"""The processed share of a walk: by the position of its key, which needs no count of rows, or by the count of rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select

from worker.batch.keyset import Keyset
from worker.batch.source import OpenStep

logger = logging.getLogger("longhaul.batch")

#: Difference between the share by position and the share by rows from which a percentage is called an estimate.
_FAR = 0.2


class WalkShare:
    """The share of a walk that is processed. It never decreases, even if rows are deleted or added.

    Attributes:
        is_estimate: Whether the position of the key and the planner's number of rows differ by far, or the planner's
            number is far too low: the rows are then spread unevenly over the keys, or the statistics are old.
    """

    def __init__(self) -> None:
        self.is_estimate = False
        self._done = 0.0
        self._walk = ""
        self._is_logged = False

    def load(self, pace: dict[str, Any], walk: str) -> None:
        """Continue with the share of an earlier attempt.

        Args:
            pace: The pace of the step.
            walk: The walk, for the log, as `step=... run=...`.
        """
        self._walk = walk
        self._done = read_share(pace)
        self.is_estimate = pace.get("is_estimate") is True

    def note(self, at: float | None, rows: int, total: int | None) -> float | None:
        """Record a committed batch.

        Args:
            at: The share by the position of its last key; None if it is unknown.
            rows: Rows that are processed.
            total: Rows of the whole walk.

        Returns:
            The share from 0 to 1; None if it is unknown.
        """
        share, self.is_estimate = self._compute(at, rows, total)
        self._done = self._done if share is None else share
        if self.is_estimate and not self._is_logged:
            self._is_logged = True
            by_key = "unknown" if at is None else f"{at:.0%}"
            logger.info(
                "percent is a rough estimate: %s by_key=%s rows=%d estimated_rows=%s", self._walk, by_key, rows, total
            )
        return share

    def dump(self, at: float | None, rows: int, total: int | None) -> dict[str, Any]:
        """Return what `note` would record, as JSON values for the pace of the step."""
        share, is_estimate = self._compute(at, rows, total)
        dumped: dict[str, Any] = {"share": round(self._done if share is None else share, 6)}
        return {**dumped, "is_estimate": True} if is_estimate else dumped

    def _compute(self, at: float | None, rows: int, total: int | None) -> tuple[float | None, bool]:
        by_rows = rows / total if total else None
        if at is None:
            if by_rows is None:
                return None, False
            # The planner's number may be too low: keep the share at or below 1 until the end.
            return max(self._done, min(1.0, by_rows)), by_rows > 1 + _FAR
        return max(self._done, at), by_rows is not None and abs(at - by_rows) > _FAR


def read_share(pace: dict[str, Any]) -> float:
    """Return the part of the walk that earlier attempts have processed, from the pace of the step."""
    share = pace.get("share")
    return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 0.0


class KeyProgress:
    """The keys of a walk as numbers on a line, for a key of one column of integers or UUIDs.

    Args:
        first: The first key of the table, or the cursor at which this attempt continues, as a number.
        last: The last key of the walk.
        done: The share that earlier attempts have processed.
    """

    def __init__(self, first: int, last: int, done: float = 0.0) -> None:
        self._first = first
        self._last = last
        self._done = done

    @classmethod
    async def look_up(cls, step: OpenStep, keyset: Keyset, last: Sequence[Any]) -> KeyProgress | None:
        """Return the line to the last key of the walk, from the table's first key; None if keys are not numbers.

        A later attempt continues at its cursor: the rows before it may be deleted by now.
        """
        part, connection = keyset.parts[0], step.connection
        if len(keyset.parts) != 1 or not part.is_exact or part.kind not in ("int", "uuid"):
            return None
        if step.cursor is not None and step.share:
            return cls(_number(keyset.decode(step.cursor)[0]), _number(last[0]), step.share)
        key = part.column
        keys = select(key).order_by(key.desc() if part.descending else key.asc()).limit(1)
        first = await connection.scalar(keyset.in_schema(keys))
        return None if first is None else cls(_number(first), _number(last[0]))

    def share(self, key: Sequence[Any]) -> float:
        """Return the part of the line that is behind a key, from 0 to 1."""
        if self._first == self._last:
            return 1.0
        share = min(1.0, max(0.0, (_number(key[0]) - self._first) / (self._last - self._first)))
        return self._done + (1 - self._done) * share


def _number(key: Any) -> int:
    return key if isinstance(key, int) else UUID(str(key)).int
