"""Statements whose values are written into their text, for the messages of PostgreSQL's protocol that take none.

Such a message ("simple query") takes several statements: a checkpoint, COMMIT, and the BEGIN of the next batch are one
round trip. https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SIMPLE-QUERY
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Value = str | int | bool | None

_COMMENT = re.compile(r"--[^\n]*\n")
_PLACE = re.compile(r"\$(\d+)")


def literal(value: Value) -> str:
    """Return a value as SQL spells it, whatever `standard_conforming_strings` says.

    Raises:
        ValueError: a NUL, for which PostgreSQL's text has no place.
    """
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if "\x00" in value:
        raise ValueError("PostgreSQL's text has no place for NUL")
    return "E'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


class TextStatement:
    """A statement that is sent as text again and again.

    Args:
        name: of the prepared statement.
        sql: with `$1`, `$2`, ..., each with a cast, so that their types are known; its comments are left out.
    """

    def __init__(self, name: str, sql: str) -> None:
        self._sql = _COMMENT.sub("", sql).strip()
        self.name = name
        #: Makes it known to a session, which then plans it once.
        self.prepare = f"PREPARE {name} AS {self._sql}"

    def execute(self, values: Sequence[Value]) -> str:
        """Return the text that executes it in a session that knows it."""
        return f"EXECUTE {self.name}({', '.join(map(literal, values))})"

    def inline(self, values: Sequence[Value]) -> str:
        """Return the whole text, for a session that knows nothing."""
        return _PLACE.sub(lambda place: literal(values[int(place[1]) - 1]), self._sql)
