"""Tables of the tests."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ARRAY, DateTime, ForeignKey, Integer, Numeric, String, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Tables that each test finds empty."""


class Mood(enum.Enum):
    """A native enum."""

    calm = "calm"
    wild = "wild"


class Author(Base):
    """Walked by the tests; `seen` counts how often a row was processed."""

    __tablename__ = "author"
    __table_args__ = (UniqueConstraint("region", "code"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    region: Mapped[int]
    code: Mapped[str]
    nickname: Mapped[str | None] = mapped_column(unique=True)
    seen: Mapped[int] = mapped_column(default=0)
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    """Belongs to an author."""

    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    title: Mapped[str]
    author: Mapped[Author] = relationship(back_populates="books")


class Sample(Base):
    """A column of each type that bulk operations have to propagate."""

    __tablename__ = "sample"

    id: Mapped[int] = mapped_column(primary_key=True)
    mood: Mapped[Mood | None]
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(String))
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    price: Mapped[Decimal | None] = mapped_column(Numeric(12, 3))
    at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    count: Mapped[int] = mapped_column(Integer, default=7)
    changed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), onupdate=func.now())
    changes: Mapped[str | None] = mapped_column(onupdate=lambda: "changed")


def authors(count: int) -> list[dict[str, Any]]:
    """Return rows of `author` with ids from 1."""
    return [{"id": i, "name": f"n{i}", "region": i % 7, "code": f"c{i}", "seen": 0} for i in range(1, count + 1)]


class Target(Base):
    """Touched by jobs whose workers die; each update leaves a row in `audit`."""

    __tablename__ = "target"

    id: Mapped[int] = mapped_column(primary_key=True)
    touched: Mapped[bool] = mapped_column(default=False)


class Audit(Base):
    """One row for each effect on a `Target`, written by a trigger in the transaction of the effect."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(primary_key=True)
    target_id: Mapped[int]


AUDIT_TRIGGER = (
    """
    CREATE OR REPLACE FUNCTION note_effect() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO audit (target_id) VALUES (NEW.id); RETURN NULL; END $$
    """,
    "CREATE TRIGGER note_effect AFTER UPDATE ON target FOR EACH ROW EXECUTE FUNCTION note_effect()",
)
