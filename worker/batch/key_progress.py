"""Progress by the position of a key between the first and the last one of a walk: it needs no count of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select

from worker.batch.keyset import Keyset
from worker.batch.source import OpenStep


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
            return cls(_number(step.cursor[0]), _number(last[0]), step.share)
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
