"""Keyset: the order in which a table is walked, and the cursor that says how far.

A cursor is the key of the last row done, as JSON; the condition "after it" is a row comparison where all parts
go one way, which PostgreSQL serves from one index range, and its expansion by parts where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CHAR,
    BigInteger,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    String,
    Table,
    UnaryExpression,
    Uuid,
    and_,
    bindparam,
    or_,
    tuple_,
)
from sqlalchemy.sql.elements import Label
from sqlalchemy.sql.operators import asc_op, desc_op
from sqlalchemy.types import TypeDecorator, TypeEngine

from worker.errors import CursorMismatch, StatementRefused


@dataclass(frozen=True)
class KeyPart:
    """One column of the key: as the statement spells it, and as the catalog knows it."""

    expression: ColumnElement[Any]
    column: Column[Any]
    descending: bool
    kind: str


_DECODE: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "text": str,
    "uuid": UUID,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "numeric": Decimal,
}


class Keyset:
    """The order of a walk.

    Args:
        parts: the key's columns, the most significant first.
    """

    def __init__(self, parts: Sequence[KeyPart]) -> None:
        self.parts = tuple(parts)

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        """The key's columns as the statement spells them."""
        return [part.expression for part in self.parts]

    @property
    def table(self) -> Table:
        """The table that the key belongs to."""
        table = self.parts[0].column.table
        assert isinstance(table, Table)  # noqa: S101
        return table

    def describe(self) -> list[list[str]]:
        """Return [column, type, direction] for each part, as the ledger keeps it."""
        return [
            [
                f"{part.column.table.fullname}.{part.column.name}",
                part.kind,
                "desc" if part.descending else "asc",
            ]
            for part in self.parts
        ]

    def order_by(self, *, reverse: bool = False) -> list[UnaryExpression[Any]]:
        """Return the ORDER BY of the walk, or of the walk backwards."""
        return [part.expression.desc() if part.descending != reverse else part.expression.asc() for part in self.parts]

    def after(self) -> ColumnElement[bool]:
        """Return "after the cursor", with the parameters of `after_values`."""
        return self._beyond("after", inclusive=False)

    def up_to(self, name: str = "upper") -> ColumnElement[bool]:
        """Return "at or before a key", with the parameters of `values(name, key)`."""
        return self._beyond(name, inclusive=True)

    def values(self, name: str, key: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of `after` (name "after") or `up_to`."""
        return {f"{name}_{index}": value for index, value in enumerate(key)}

    def encode(self, key: Sequence[Any]) -> list[Any]:
        """Return a key as JSON values."""
        return [value if isinstance(value, int) else _text(value) for value in key]

    def decode(self, cursor: Sequence[Any]) -> list[Any]:
        """Return a key from JSON values.

        Raises:
            CursorMismatch: they are not of the key's types.
        """
        try:
            return [_DECODE[part.kind](value) for part, value in zip(self.parts, cursor, strict=True)]
        except (ValueError, TypeError, ArithmeticError) as error:
            raise CursorMismatch(f"the cursor {list(cursor)} does not fit the key {self.describe()}") from error

    def _beyond(self, name: str, *, inclusive: bool) -> ColumnElement[bool]:
        bound = [bindparam(f"{name}_{index}", type_=part.column.type) for index, part in enumerate(self.parts)]
        # Going up, "after" is >, and "up to" is <=; for a descending part both are the other way round.
        up = [part.descending == inclusive for part in self.parts]
        if len(self.parts) == 1 or len(set(up)) == 1:
            left: Any = self.parts[0].expression if len(self.parts) == 1 else tuple_(*self.columns)
            right: Any = bound[0] if len(self.parts) == 1 else tuple_(*bound)
            return _compare(left, right, up=up[0], inclusive=inclusive)
        # Mixed directions: (a > x) or (a = x and b < y) or ..., and the first part alone for the index.
        choices: list[ColumnElement[bool]] = []
        for index, part in enumerate(self.parts):
            equal = [earlier.expression == value for earlier, value in zip(self.parts[:index], bound, strict=False)]
            last = inclusive and index == len(self.parts) - 1
            choices.append(and_(*equal, _compare(part.expression, bound[index], up=up[index], inclusive=last)))
        return and_(_compare(self.parts[0].expression, bound[0], up=up[0], inclusive=True), or_(*choices))


def key_part(expression: Any, column: Column[Any]) -> KeyPart:
    """Return the part of a key for an expression, which may carry a direction.

    Raises:
        StatementRefused: its type is none that a cursor can hold.
    """
    descending = False
    if isinstance(expression, UnaryExpression) and expression.modifier in (asc_op, desc_op):
        descending = expression.modifier is desc_op
        expression = expression.element
    return KeyPart(expression, column, descending, _kind(column))


def underlying_column(expression: Any) -> Column[Any] | None:
    """Return the table's column behind an attribute, an alias' column or a labelled one; None for others."""
    if isinstance(expression, UnaryExpression) and expression.modifier in (asc_op, desc_op):
        expression = expression.element
    expression = getattr(expression, "__clause_element__", lambda: expression)()
    if isinstance(expression, Label):
        expression = expression.element
    found = [column for column in getattr(expression, "base_columns", ()) if isinstance(column, Column)]
    if len(found) == 1 and isinstance(found[0].table, Table):
        return found[0]
    return None


def _compare(left: Any, right: Any, *, up: bool, inclusive: bool) -> ColumnElement[bool]:
    if up:
        return left >= right if inclusive else left > right  # type: ignore[no-any-return]
    return left <= right if inclusive else left < right  # type: ignore[no-any-return]


def _kind(column: Column[Any]) -> str:
    type_: TypeEngine[Any] = column.type
    kinds: list[tuple[type[TypeEngine[Any]], str]] = [
        (Integer, "int"),
        (BigInteger, "int"),
        (Uuid, "uuid"),
        (Date, "date"),
        (DateTime, "timestamptz" if getattr(type_, "timezone", False) else "timestamp"),
        (Numeric, "numeric"),
        (String, "text"),
    ]
    # CHAR(n) is compared without its padding, and read with it.
    if not isinstance(type_, Enum | Float | TypeDecorator | CHAR):
        for known, kind in kinds:
            if isinstance(type_, known):
                return kind
    raise StatementRefused(
        f"{column} is {type_!r}, which a cursor cannot hold: walk by a unique key of int, bigint, text, uuid, "
        f"date, timestamp or numeric columns, with by=..."
    )


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
