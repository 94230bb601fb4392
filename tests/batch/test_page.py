"""Rows from the driver behave like rows of SQLAlchemy."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Enum, select
from sqlalchemy.orm import Mapped, mapped_column

from tests.models import Base
from tests.support.contexts import MakeContext
from worker.batch.page import Row, jsonable
from worker.db.statement_internals import cut_rows


class Letter(enum.Enum):
    """Converted by SQLAlchemy: a row with it is SQLAlchemy's own."""

    a = "a"


class Hiding(Base):
    """Columns with the names of methods."""

    __tablename__ = "hiding"

    id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[int] = mapped_column(default=1)
    keys: Mapped[int] = mapped_column(default=2)
    items: Mapped[int] = mapped_column(default=3)
    get: Mapped[int] = mapped_column(default=4)
    count: Mapped[int] = mapped_column(default=5)
    index: Mapped[int] = mapped_column(default=6)
    note: Mapped[str] = mapped_column(default="n")
    letter: Mapped[Letter] = mapped_column(Enum(Letter, native_enum=False), default=Letter.a)


def _match(row: Any) -> Any:
    match row:
        case [first, *_]:
            return first
    return None


USES: dict[str, Callable[[Any], Any]] = {
    "unpacking": lambda row: list(row),
    "contains a value": lambda row: 7 in row,
    "contains a name": lambda row: "note" in row,
    "equality": lambda row: (row == tuple(row), tuple(row) == row, row != (0,)),
    "hash": lambda row: hash(row) == hash(tuple(row)),
    "order": lambda row: (row < (10**6,), row >= (0,)),
    "slice": lambda row: row[1:2],
    "last": lambda row: row[-1],
    "length": len,
    "attribute": lambda row: (row.id, row.note),
    "mapping": lambda row: dict(row._mapping),
    "dict": lambda row: row._asdict(),
    "fields": lambda row: row._fields,
    "pickle": lambda row: tuple(pickle.loads(pickle.dumps(row))),
    "pickled attribute": lambda row: pickle.loads(pickle.dumps(row)).note,
    "copy": lambda row: tuple(copy.copy(row)),
    "deep copy": lambda row: tuple(copy.deepcopy(row)),
    "count": lambda row: row.count(7),
    "index": lambda row: row.index("n"),
    "text": repr,
    "match": _match,
}


async def one_row(context: MakeContext, columns: Sequence[Any]) -> Any:
    await context().bulk.insert(Hiding, [{"id": 7}])
    (row,) = [row async for batch in context().chunks(select(*columns), size=5) for row in batch]
    return row


@pytest.mark.parametrize("use", list(USES))
async def test_a_row_of_the_driver_is_used_as_one_of_sqlalchemy(context: MakeContext, use: str) -> None:
    ours = await one_row(context, [Hiding.id, Hiding.note])
    assert isinstance(ours, tuple) is False
    assert issubclass(type(ours), Row)
    theirs = pickle.loads(pickle.dumps(ours))
    assert not issubclass(type(theirs), Row)
    assert USES[use](ours) == USES[use](theirs)


@pytest.mark.parametrize("converted", [False, True], ids=["driver", "sqlalchemy"])
async def test_columns_with_names_of_methods_are_columns(context: MakeContext, converted: bool) -> None:
    columns = [Hiding.id, Hiding.values, Hiding.keys, Hiding.items, Hiding.get, Hiding.count, Hiding.index]
    row = await one_row(context, [*columns, *([Hiding.letter] if converted else [])])
    assert [row.id, row.values, row.keys, row.items, row.get, row.count, row.index] == [7, 1, 2, 3, 4, 5, 6]


class Unspeakable:
    """A value that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_row_is_shown_without_the_values_that_cannot_be() -> None:
    circle: list[Any] = []
    circle.append(circle)
    (row,) = cut_rows([(1, b"\xff\x00", Unspeakable(), circle, "\ud800")], ["id", "raw", "odd", "circle", "text"])
    shown = jsonable(row)
    assert shown["id"] == 1
    assert shown["raw"] == "ff00"
    assert shown["odd"] == "<Unspeakable that cannot be shown>"
    assert shown["circle"] == "<list that cannot be shown>"
    json.dumps(shown)


def test_value_that_cannot_be_shown_is_named() -> None:
    assert jsonable(Unspeakable()) == {"value": "<Unspeakable that cannot be shown>"}
