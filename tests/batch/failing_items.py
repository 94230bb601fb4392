"""Rows that cannot be read, and loops over them."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from typing import Any

import pytest_asyncio
from sqlalchemy import (
    JSON,
    Enum,
    String,
    TypeDecorator,
    text,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
)

from worker.db.engine import Database

ROWS, SIZE = 30, 8
LIMIT_SECONDS = 60


class Mood(enum.Enum):
    """Has no member for every text in the table."""

    calm = "calm"


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Picky(TypeDecorator[str]):
    """A type whose decoder raises."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        if value == "bad":
            raise KeyError("no such value")
        if value == "unspeakable":
            raise Unspeakable
        return value


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """One column for each way in which a value cannot be read."""

    __tablename__ = "unreadable_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime | None]
    day: Mapped[date | None]
    span: Mapped[timedelta | None]
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, native_enum=False, length=10))
    picky: Mapped[str | None] = mapped_column(Picky())
    data: Mapped[Any] = mapped_column(JSON, nullable=True)
    number: Mapped[str | None]


#: What makes a row unreadable: the SQL of one value.
KINDS = {
    "timestamp after 9999": ("at", "timestamp '12000-01-01'"),
    "date after 9999": ("day", "date '12000-01-01'"),
    "interval": ("span", "interval '170000000 years'"),
    "enum": ("mood", "'wild'"),
    "decoder": ("picky", "'bad'"),
    "error without words": ("picky", "'unspeakable'"),
    "json": ("data", f"'{'9' * 5_000}'::json"),
    "expression": ("number", "'seven'"),
}


@pytest_asyncio.fixture(name="items")
async def table_of_items(database: Database) -> AsyncIterator[None]:
    """The tables, with thirty items."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            text(
                f"INSERT INTO unreadable_item (id, seen, mood, number, picky, data) "
                f"SELECT n, 0, 'calm', '7', 'good', '{{}}' FROM generate_series(1, {ROWS}) n"
            ),
        )
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


async def damage(database: Database, kind: str, ids: list[int]) -> str:
    column, value = KINDS[kind]
    async with database.transaction() as session:
        sql = f"UPDATE unreadable_item SET {column} = {value} WHERE id = ANY(:ids)"
        await session.execute(text(sql), {"ids": ids})
    return column
