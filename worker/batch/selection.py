"""A part of a walk that an operator selects: `--subset 'id < 1000'` and `--from KEY`.

The subset is SQL of an operator, and runs under the worker's role. It is one expression: it must not end the
parentheses that it is put into, so that it can only narrow the walk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Delete, Insert, Select, Update, literal_column
from sqlalchemy.sql.elements import ColumnElement

from worker.batch.keyset import Keyset
from worker.db.statement_internals import replace_source
from worker.errors import CursorMismatch, InvalidArguments

StatementT = TypeVar("StatementT", bound=Select[Any] | Update | Delete | Insert)

_LONGEST = 10_000


@dataclass(frozen=True)
class Selection:
    """A part of a walk.

    Attributes:
        subset: An SQL expression that the rows fulfil; None for all rows.
        first: The key of the first row, as JSON values; None to begin with the first row of the walk.
    """

    subset: str | None = None
    first: list[Any] | None = None

    def apply(self, statement: StatementT, keyset: Keyset | None) -> StatementT:
        """Return a statement that is restricted to this part.

        Args:
            statement: The statement of a loop.
            keyset: Its key, with the types of the catalog.
        """
        conditions: list[ColumnElement[bool]] = []
        if self.subset is not None:
            conditions.append(literal_column(f"({check_expression(self.subset)})"))
        if self.first is not None:
            if keyset is None:
                raise InvalidArguments("--from needs a loop that has a key")
            if len(self.first) != len(keyset.parts):
                raise InvalidArguments(
                    f"--from: the key of this loop has {len(keyset.parts)} columns: give a JSON list of as many values"
                )
            try:
                conditions.append(keyset.at_or_after(keyset.fit(self.first)))
            except CursorMismatch as error:
                raise InvalidArguments(describe_wrong_key("--from", self.first, error.key)) from None
        if not conditions:
            return statement
        if isinstance(statement, Insert):
            source: Any = statement.select
            return replace_source(statement, source.where(*conditions))  # type: ignore[return-value]
        return statement.where(*conditions)  # type: ignore[return-value]


def describe_wrong_key(option: str, given: list[Any], key: str) -> str:
    """Return the error of a key on the command line that has other types than the key of a loop."""
    return f"{option} {json.dumps(given, default=str)}: this is no key of this loop, whose key is {key}"


def check_expression(text: str) -> str:
    """Return an SQL expression that stays within its parentheses.

    Raises:
        InvalidArguments: It has a comment, a semicolon, a parameter, or parentheses that it does not open and close.
    """
    depth = 0
    if not text.strip() or len(text) > _LONGEST or "\x00" in text:
        raise InvalidArguments(f"--subset: give one SQL expression of 1 to {_LONGEST} characters, such as 'id < 1000'")
    for part in _tokens(text):
        if part in ("--", "/*"):
            raise _refused(text, "a comment")
        if part in (";", "$"):
            raise _refused(text, f"a {part} outside of a quoted text")
        depth += (part == "(") - (part == ")")
        if depth < 0:
            break
    if depth != 0:
        raise _refused(text, "parentheses that do not match")
    return text


def _refused(text: str, what: str) -> InvalidArguments:
    return InvalidArguments(f"--subset {text!r}: it has {what}; give one SQL expression, such as 'id < 1000'")


def _tokens(text: str) -> Iterator[str]:
    """Yield the characters, and the marks of comments, that are outside of quoted texts and names."""
    place = 0
    while place < len(text):
        one = text[place]
        if one in "'\"":
            escapes = one == "'" and place > 0 and text[place - 1] in "eE"
            place = _skip_quoted(text, place, escapes=escapes)
            continue
        yield text[place : place + 2] if text[place : place + 2] in ("--", "/*") else one
        place += 1


def _skip_quoted(text: str, place: int, *, escapes: bool) -> int:
    """Return the place behind a quoted text or name."""
    quote, place = text[place], place + 1
    while place < len(text):
        if text[place] == "\\" and not escapes:
            raise _refused(text, "a backslash, whose meaning depends on a setting of the server: write E'...'")
        if text[place] == "\\":
            place += 2
        elif text[place] == quote and text[place : place + 2] != quote * 2:
            return place + 1
        else:
            place += 2 if text[place] == quote else 1
    raise _refused(text, f"a {quote} without its end")
