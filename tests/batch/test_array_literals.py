"""An array that is sent as text has the elements of the array that the driver sends."""

from __future__ import annotations

import random
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from sqlalchemy import Column, Integer, select

from tests.models import Author, authors
from tests.support.contexts import MakeContext
from worker.batch.bulk.array_literals import encode_arrays
from worker.db.engine import Database
from worker.errors import BulkError

ALPHABET = [
    "",
    "a",
    '"',
    "\\",
    "'",
    ",",
    "{",
    "}",
    " ",
    "\t",
    "\n",
    "\r",
    "NULL",
    "null",
    "é",
    "\U0001f600",
    "\u202e",
    "\x01",
    "$1",
    "::",
]


class Number(IntEnum):
    """An integer that shows itself by its name."""

    ONE = 1


class Name(StrEnum):
    """A text of a type of its own."""

    ONE = "one"


class Named(int):
    """An integer that shows itself as something else."""

    def __repr__(self) -> str:
        return "1}, {2"


def random_texts(seed: int) -> list[str | None]:
    """Return hostile texts, and None among half of them."""
    chosen = random.Random(seed)
    texts: list[str | None] = ["".join(chosen.choices(ALPHABET, k=chosen.randrange(6))) for _ in range(40)]
    return [None if seed % 2 and chosen.random() < 0.3 else text for text in texts]


INTEGERS = {
    "SMALLINT[]": [[0], [-(2**15), 2**15 - 1], [None, *range(-50, 50), None]],
    "INTEGER[]": [[0], [-(2**31), 2**31 - 1], list(range(-5000, 5000))],
    "BIGINT[]": [[0], [-(2**63), 2**63 - 1], [10**n for n in range(19)]],
}
TEXTS = [[""], ["", ""], [*ALPHABET], ["x" * 100_000], [None, "", None, "NULL", None], *map(random_texts, range(200))]


LEFT_TO_THE_DRIVER: list[tuple[str, list[Any]]] = [
    ("INTEGER[]", []),
    ("INTEGER[]", [None]),
    ("INTEGER[]", [None, 2**31]),
    ("INTEGER[]", [True]),
    ("INTEGER[]", [1.5]),
    ("INTEGER[]", [Number.ONE]),
    ("INTEGER[]", [Named(1)]),
    ("INTEGER[]", ["1"]),
    ("INTEGER[]", [2**31]),
    ("INTEGER[]", [-(2**31) - 1]),
    ("INTEGER[]", [10**5000]),
    ("SMALLINT[]", [2**15]),
    ("BIGINT[]", [2**63]),
    ("NUMERIC[]", [1]),
    ("VARCHAR[]", [None, None]),
    ("VARCHAR[]", [None, "\x00"]),
    ("VARCHAR[]", [None, "\ud800"]),
    ("VARCHAR[]", ["a\x00b"]),
    ("VARCHAR[]", ["\x00"]),
    ("VARCHAR[]", [Name.ONE]),
    ("VARCHAR[]", [b"a"]),
    ("VARCHAR(3)[]", ["long"]),
    ("JSONB[]", ["{}"]),
]


COLUMN: Column[Any] = Column("value", Integer)


def encode_array(cast: str, values: list[Any]) -> tuple[str, Any]:
    """Return cast and argument of one array."""
    casts, arguments = encode_arrays({COLUMN: cast}, [values])
    return casts[COLUMN], arguments[0]


async def test_the_server_reads_the_same_elements(database: Database) -> None:
    async with database.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        for cast, lists in INTEGERS.items():
            for values in lists:
                sent_as, literal = encode_array(cast, values)
                assert sent_as == f"text::{cast}"
                assert await raw.fetchval(f"SELECT $1::{sent_as}", literal) == values
        for cast in ("VARCHAR[]", "text[]", "character varying[]"):
            for texts in TEXTS:
                sent_as, literal = encode_array(cast, texts)
                assert sent_as == f"text::{cast}"
                assert await raw.fetchval(f"SELECT $1::{sent_as}", literal) == texts


def test_other_elements_are_left_to_the_driver() -> None:
    for cast, values in LEFT_TO_THE_DRIVER:
        assert encode_array(cast, values) == (cast, values)


async def test_a_value_that_is_refused_leaves_the_transaction_of_the_batch(context: MakeContext) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(3))
    async for batch in ctx.chunks(select(Author.id), size=3):
        for seen, code in ((2**31, "x"), (1, "\ud800")):
            rows = [{"id": key, "seen": seen, "code": f"{code}{key}"} for key in batch]
            with pytest.raises(BulkError, match="row 0"):
                await batch.bulk.update(Author, rows)
        await batch.bulk.update(Author, [{"id": key, "seen": key, "code": '"\\'} for key in batch])
    async with ctx.transaction() as session:
        found = (await session.execute(select(Author.seen, Author.code).order_by(Author.id))).all()
    assert [tuple(row) for row in found] == [(key, '"\\') for key in (1, 2, 3)]
