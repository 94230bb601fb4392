"""Kinds of mapped classes, and their tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Computed, ForeignKey, Identity, MetaData, event, func, select, text
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    composite,
    mapped_column,
    synonym,
    validates,
)
from sqlalchemy.types import UserDefinedType

SCHEMA = "mapped"
COUNT = 12


class Base(DeclarativeBase):
    """Tables in a schema of their own."""

    metadata = MetaData(schema=SCHEMA)


class Row:
    """The columns that all classes have."""

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(default=1)


@dataclasses.dataclass
class Point:
    x: int | None
    y: int | None


class Composite(Row, Base):
    __tablename__ = "composite"
    point: Mapped[Point] = composite(
        mapped_column("px", sa.Integer, nullable=True), mapped_column("py", sa.Integer, nullable=True)
    )


class Versioned(Row, Base):
    __tablename__ = "versioned"
    version: Mapped[int] = mapped_column("v")
    __mapper_args__ = {"version_id_col": version}


class Synonyms(Row, Base):
    __tablename__ = "synonyms"
    m = synonym("n")

    @hybrid_property
    def twice(self) -> int:
        return self.n * 2


class Squared(Row, Base):
    __tablename__ = "squared"


Squared.square = column_property(Squared.n * Squared.n)  # type: ignore[attr-defined]


class Updated(Row, Base):
    """Its values on update are a function of the context, and an expression."""

    __tablename__ = "updated"
    copied: Mapped[int | None] = mapped_column(onupdate=lambda context: context.get_current_parameters().get("n", 77))
    made: Mapped[int | None] = mapped_column(onupdate=text("40 + 2"), default=select(sa.literal(5)).scalar_subquery())


class Defaulted(Row, Base):
    """Its default is a function of the context."""

    __tablename__ = "defaulted"
    copied: Mapped[int] = mapped_column(default=lambda context: context.get_current_parameters()["id"] * 10)


class Generated(Row, Base):
    __tablename__ = "generated"
    double: Mapped[int] = mapped_column(Computed("n * 2"))
    always: Mapped[int] = mapped_column(Identity(always=True))
    late: Mapped[str | None] = mapped_column(server_default=func.lower("DEFAULT"))


class ByServer(Row, Base):
    """Its table has a trigger that changes rows, and columns of domains; see `CREATE`."""

    __tablename__ = "by_server"
    word: Mapped[str | None]


class Partitioned(Row, Base):
    __tablename__ = "partitioned"
    __table_args__ = {"postgresql_partition_by": "RANGE (id)"}


class Single(Row, Base):
    __tablename__ = "single"
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "base"}


class SingleChild(Single):
    extra: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "child"}


class Joined(Row, Base):
    __tablename__ = "joined"
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "base"}


class JoinedChild(Joined):
    __tablename__ = "joined_child"
    id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.joined.id"), primary_key=True)
    extra: Mapped[int | None] = mapped_column(default=3)
    __mapper_args__ = {"polymorphic_identity": "child"}


class Elements:
    """As an array of NumPy: comparisons return an array, which has no truth value."""

    def __init__(self, *values: int) -> None:
        self.values = values

    def __eq__(self, other: object) -> Any:
        return Ambiguous()

    __ne__ = __eq__
    __hash__ = None  # type: ignore[assignment]


class Ambiguous:
    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


class Vector(UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "TEXT"

    def bind_processor(self, dialect: Any) -> Any:
        return lambda value: None if value is None else ",".join(map(str, value.values))

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        return lambda value: None if value is None else Elements(*map(int, value.split(",")))


class Embedded(Row, Base):
    __tablename__ = "embedded"
    vector: Mapped[Any] = mapped_column(Vector, nullable=True)


class Mutated(Row, Base):
    __tablename__ = "mutated"
    document: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(pg.JSONB), default=dict)


class Heard(Row, Base):
    """Listeners set a column."""

    __tablename__ = "heard"
    log: Mapped[str | None]


@event.listens_for(Heard, "before_update")
def note_update(mapper: Any, connection: Any, row: Heard) -> None:
    row.log = f"{row.log}, updated"


class Validated(Row, Base):
    __tablename__ = "validated"

    @validates("n")
    def check(self, key: str, value: int) -> int:
        return value + 1000


class AsDataclass(MappedAsDataclass, Base):
    __tablename__ = "as_dataclass"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(default=1)


class Keyed(Base):
    """Attributes, keys and names of its columns differ."""

    __tablename__ = "keyed"
    id: Mapped[int] = mapped_column("Id %", key="the_id", primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(sa.quoted_name("N", True), key="the_n", default=1)


class Sequenced(Row, Base):
    __tablename__ = "sequenced"
    number: Mapped[int] = mapped_column(sa.Sequence("odd seq", schema=SCHEMA, start=50, metadata=Base.metadata))


CALLS: list[int] = []


def count_calls() -> int:
    CALLS.append(len(CALLS))
    return CALLS[-1]


COUNTED = sa.Table(
    "counted",
    MetaData(schema=SCHEMA),
    sa.Column("id", sa.Integer, primary_key=True, default=count_calls),
    sa.Column("n", sa.Integer),
)

CREATE = f"""
CREATE TABLE {SCHEMA}.part_1 PARTITION OF {SCHEMA}.partitioned FOR VALUES FROM (0) TO (5);
CREATE TABLE {SCHEMA}.part_2 PARTITION OF {SCHEMA}.partitioned FOR VALUES FROM (5) TO (1000);
CREATE FUNCTION {SCHEMA}.change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.word := coalesce(NEW.word, '') || TG_OP || NEW.n; NEW.n := NEW.n + 1; RETURN NEW; END $$;
CREATE TRIGGER change BEFORE INSERT OR UPDATE ON {SCHEMA}.by_server FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.change();
CREATE DOMAIN {SCHEMA}.small AS int CHECK (VALUE < 10000); CREATE DOMAIN {SCHEMA}.word AS text;
ALTER TABLE {SCHEMA}.by_server ALTER n TYPE {SCHEMA}.small, ALTER word TYPE {SCHEMA}.word;
"""

ENTITIES: list[Any] = sorted((mapper.class_ for mapper in Base.registry.mappers), key=lambda one: one.__name__)
