"""Tables of a schema of their own, with names that have to be quoted, and the triggers that watch and break them."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "My Shop"
NOW = datetime.now(UTC)


class Base(DeclarativeBase):
    """The tables of the shop."""

    metadata = MetaData(schema=SCHEMA)


class Kind(enum.Enum):
    """A native enum whose names differ from its values."""

    person = "a person"
    firm = "a firm"


class Customer(Base):
    """The root of a tree of foreign keys."""

    __tablename__ = "Customer"
    __table_args__ = (
        CheckConstraint("score >= 0", name="Score is positive"),
        UniqueConstraint("email", name="one email"),
    )

    id: Mapped[int] = mapped_column("Id", primary_key=True)
    email: Mapped[str] = mapped_column(String(30))
    joined_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: NOW)
    left_on: Mapped[date | None]
    score: Mapped[int | None]
    slug: Mapped[str | None] = mapped_column("select")
    kind: Mapped[Kind] = mapped_column(default=Kind.person)
    balance: Mapped[Decimal] = mapped_column(Numeric(10, 2), default=0)


class Order(Base):
    """A child."""

    __tablename__ = "order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.Customer.Id"), index=True)


class Line(Base):
    """A grandchild with a key of two columns."""

    __tablename__ = "line"

    order_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.order.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Shipment(Base):
    """A child of the grandchild, by a foreign key of two columns, and of the root."""

    __tablename__ = "shipment"
    __table_args__ = (
        ForeignKeyConstraint(["order_id", "number"], [f"{SCHEMA}.line.order_id", f"{SCHEMA}.line.number"]),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None]
    number: Mapped[int | None]
    customer_id: Mapped[int | None] = mapped_column(ForeignKey(f"{SCHEMA}.Customer.Id", ondelete="CASCADE"))


#: A child without a key.
note = Table("note", Base.metadata, Column("customer_id", ForeignKey(f"{SCHEMA}.Customer.Id"), nullable=False))


class Card(Base):
    """Stays when its customer is deleted."""

    __tablename__ = "card"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey(f"{SCHEMA}.Customer.Id", ondelete="SET NULL"))


class Visit(Base):
    """Rows without children."""

    __tablename__ = "visit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shop: Mapped[int]
    page: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(DateTime, default=lambda: NOW.replace(tzinfo=None))
    seconds: Mapped[int] = mapped_column(default=0)


class OldVisit(Base):
    """Gets the rows of `Visit`."""

    __tablename__ = "old visit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shop: Mapped[int]
    page: Mapped[str | None]
    at: Mapped[datetime]
    seconds: Mapped[int]
    minutes: Mapped[int | None] = mapped_column(Integer, Computed("seconds / 60"))


class Total(Base):
    """Totals of the visits."""

    __tablename__ = "total"

    shop: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    visits: Mapped[int]


class Tree(Base):
    """Refers to itself."""

    __tablename__ = "tree"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey(f"{SCHEMA}.tree.id"))


class Ring(Base):
    """Refers to a table that refers to it."""

    __tablename__ = "ring"

    id: Mapped[int] = mapped_column(primary_key=True)
    stone_id: Mapped[int | None] = mapped_column(ForeignKey(f"{SCHEMA}.stone.id", use_alter=True, name="ring_stone"))


class Stone(Base):
    """See `Ring`."""

    __tablename__ = "stone"

    id: Mapped[int] = mapped_column(primary_key=True)
    ring_id: Mapped[int | None] = mapped_column(ForeignKey(f"{SCHEMA}.ring.id", name="stone_ring"))


class Animal(Base):
    """Shares its table with its subclasses."""

    __tablename__ = "animal"
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    called: Mapped[str] = mapped_column("name")


class Dog(Animal):
    """A class without a table of its own."""

    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "dog"}


class Poodle(Dog):
    """A dog."""

    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "poodle"}


class Missing(Base):
    """Is in no database."""

    __tablename__ = "missing"

    id: Mapped[int] = mapped_column(primary_key=True)
    shop: Mapped[int]
    page: Mapped[str | None]
    at: Mapped[datetime]
    seconds: Mapped[int]


class Keyless:
    """Not a model."""


keyless = Table("keyless", MetaData(), Column("a", Integer))

#: Every change of a visit leaves a row in `log`; a change of a visit whose id is in `fuse` fails.
TRIGGERS = f"""
CREATE TABLE "{SCHEMA}".log (op text, tab text, id int, tx xid8 DEFAULT pg_current_xact_id());
CREATE TABLE "{SCHEMA}".fuse (id int);
CREATE FUNCTION "{SCHEMA}".watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM "{SCHEMA}".fuse AS f WHERE f.id = (to_jsonb(coalesce(NEW, OLD)) ->> TG_ARGV[0])::int) THEN
        RAISE EXCEPTION 'the fuse is blown';
    END IF;
    INSERT INTO "{SCHEMA}".log (op, tab, id)
    VALUES (TG_OP, TG_TABLE_NAME, (to_jsonb(coalesce(NEW, OLD)) ->> TG_ARGV[0])::int);
    RETURN NULL;
END $$;
"""


def watch(table: str, column: str = "id") -> str:
    """Return the trigger of a table."""
    return (
        f'CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON "{SCHEMA}"."{table}" '
        f"FOR EACH ROW EXECUTE FUNCTION \"{SCHEMA}\".watch('{column}');"
    )


def visits(count: int) -> list[dict[str, object]]:
    """Return visits with ids from 1, one an hour, the first the oldest."""
    at = NOW.replace(tzinfo=None)
    return [
        {"id": n, "shop": n % 3, "page": f"p{n % 10}", "at": at - timedelta(hours=count - n), "seconds": n}
        for n in range(1, count + 1)
    ]
