"""The processed share of a walk: by the position of its key, which needs no count of rows, or by the count of rows."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from worker.batch.histogram import has_numbers, read_histogram, read_number
from worker.batch.keyset import Keyset
from worker.batch.source import OpenStep

logger = logging.getLogger("longhaul.batch")

#: Difference between the share by position and the share by rows from which a percentage is called an estimate.
_FAR = 0.2


#: The statistics of keys may be closed to the role: a walk without them goes by a straight line.
_MAY_READ = func.pg_catalog.has_table_privilege("pg_catalog.pg_stats", "SELECT")


class WalkShare:
    """The share of a walk that is processed. It never decreases, even if rows are deleted or added.

    Attributes:
        is_estimate: Whether the position of the key and the planner's number of rows differ by far, or the planner's
            number is far too low: the rows are then spread unevenly over the keys, or the statistics are old.
        by: What the share is of: `position`, `ranges`, `rows` of an estimated number, or `count`, rows of a counted
            number; None if the share is unknown or all.
    """

    def __init__(self) -> None:
        self.is_estimate = False
        self.by: str | None = None
        self._done = 0.0
        self._is_counted = self._is_by_key = False
        self._walk = ""
        self._is_logged = False

    def load(self, pace: dict[str, Any], walk: str, *, is_counted: bool = False) -> None:
        """Continue with the share of an earlier attempt.

        Args:
            pace: The pace of the step.
            walk: The walk, for the log, as `step=... run=...`.
            is_counted: Whether the number of rows is counted, not estimated: the share is then of rows.
        """
        self._walk, self._is_counted = walk, is_counted
        self._is_by_key = pace.get("by") == "position"
        self._done = read_share(pace)
        self.is_estimate = pace.get("is_estimate") is True

    def note(
        self, at: float | None, rows: int, total: int | None, *, by: str = "position", done: bool = False
    ) -> float | None:
        """Record a committed batch.

        Args:
            at: The share by the position of its last key; None if it is unknown.
            rows: Rows that are processed.
            total: Rows of the whole walk.
            by: The meaning of `at`.
            done: Whether it was the last batch.

        Returns:
            The share from 0 to 1; None if it is unknown.
        """
        if done:
            self.is_estimate, self.by = False, None
            return 1.0
        at = self._position(at) if by == "position" else at
        self._is_by_key = at is not None and by == "position"
        share, self.is_estimate = self._compute(at, rows, total)
        self.by = by if at is not None else None if share is None else self._by_rows
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
        at = self._position(at)
        share, is_estimate = self._compute(at, rows, total)
        dumped: dict[str, Any] = {"share": round(self._done if share is None else share, 6)}
        if share is not None:
            dumped["by"] = self._by_rows if at is None else "position"
        return {**dumped, "is_estimate": True} if is_estimate else dumped

    @property
    def _by_rows(self) -> str:
        return "count" if self._is_counted else "rows"

    def _position(self, at: float | None) -> float | None:
        """Return the position of a page; the last one for a page without, e.g. for a batch that has failed."""
        if self._is_counted:
            return None
        return self._done if at is None and self._is_by_key else at

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

    The planner's statistics have keys between which are as many rows each. By them, a clump of keys has its part of the
    line, and a gap has none. Without them, equal parts of the line have equal parts of the keys' numbers.

    Args:
        first: The first key of the table, or the cursor at which this attempt continues, as a number.
        last: The last key of the walk.
        done: The share that earlier attempts have processed.
        bounds: Keys in ascending order between which are as many rows each, as numbers; none if they are unknown.
    """

    def __init__(self, first: int, last: int, done: float = 0.0, bounds: Sequence[int] = ()) -> None:
        self._bounds = bounds if len(bounds) > 1 and bounds[0] < bounds[-1] else ()
        self._first = self._place(first)
        self._length = self._place(last) - self._first
        self._done = done

    @classmethod
    async def look_up(cls, step: OpenStep, keyset: Keyset, last: Sequence[Any]) -> KeyProgress | None:
        """Return the line to the last key of the walk, from the table's first key; None if keys are not numbers.

        A later attempt continues at its cursor: the rows before it may be deleted by now.
        """
        part, connection = keyset.parts[0], step.connection
        if not has_numbers(keyset):
            return None
        key = part.column
        keys = select(key).order_by(key.desc() if part.descending else key.asc()).limit(1)
        looked_up = keyset.in_schema(select(keys.scalar_subquery(), _MAY_READ))
        first, may_read = (await connection.execute(looked_up)).one()
        bounds = await read_histogram(connection, keyset) if may_read else []
        if step.cursor is not None and step.share:
            return cls(read_number(keyset.decode(step.cursor)[0]), read_number(last[0]), step.share, bounds)
        return None if first is None else cls(read_number(first), read_number(last[0]), bounds=bounds)

    def share(self, key: Sequence[Any]) -> float:
        """Return the part of the line that is behind a key, from 0 to 1."""
        if not self._length:
            return 1.0
        share = min(1.0, max(0.0, float((self._place(read_number(key[0])) - self._first) / self._length)))
        return self._done + (1 - self._done) * share

    def _place(self, key: int) -> float:
        """Return the place of a key on the line. Outside of the bounds, keys are as dense as the average within."""
        bounds = self._bounds
        if not bounds:
            return key
        at, length = bisect_right(bounds, key), bounds[-1] - bounds[0]
        if at == 0:
            return (key - bounds[0]) / length
        if at == len(bounds):
            return 1 + (key - bounds[-1]) / length
        before, behind = bounds[at - 1], bounds[at]
        return (at - 1 + (key - before) / (behind - before)) / (len(bounds) - 1)
