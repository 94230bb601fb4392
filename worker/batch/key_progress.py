"""Progress by the position of a key between the first and the last one of a walk: it needs no count of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.keyset import Keyset


class KeyProgress:
    """The keys of a walk on a line: those of one column of integers or UUIDs.

    Args:
        first: The first key of the table, as a number.
        last: The last key of the walk.
    """

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._last = last

    @classmethod
    async def look_up(cls, connection: AsyncConnection, keyset: Keyset, last: Sequence[Any]) -> KeyProgress | None:
        """Return the line from the table's first key to the last one of the walk; None if keys are not numbers."""
        part = keyset.parts[0]
        if len(keyset.parts) != 1 or not part.is_exact or part.kind not in ("int", "uuid"):
            return None
        key = part.column
        keys = select(key).order_by(key.desc() if part.descending else key.asc()).limit(1)
        first = await connection.scalar(keyset.in_schema(keys))
        return None if first is None else cls(_number(first), _number(last[0]))

    def share(self, key: Sequence[Any]) -> float:
        """Return the part of the line that is behind a key, from 0 to 1."""
        if self._first == self._last:
            return 1.0
        return min(1.0, max(0.0, (_number(key[0]) - self._first) / (self._last - self._first)))


def _number(key: Any) -> int:
    return key if isinstance(key, int) else UUID(str(key)).int
