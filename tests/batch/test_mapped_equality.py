"""Bulk operations and the flush of a batch write what SQLAlchemy writes, for every way to map a class."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy import Computed, ForeignKey, Identity, MetaData, event, func, insert, select, text, update
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncSession
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
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import UserDefinedType

from worker.batch.bulk.operations import Bulk
from worker.batch.bulk_flush import flush_changes
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.errors import BulkError
from worker.settings import Settings

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


@pytest_asyncio.fixture
async def tables(database: Database) -> AsyncIterator[Database]:
    """A table for each class."""
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        await connection.run_sync(Base.metadata.create_all)
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.execute(CREATE)
    yield database
    async with database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))


def new_rows(entity: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"id": number, "n": number * 3} for number in range(COUNT)]
    if entity is Embedded:
        return [row | {"vector": Elements(1, row["id"])} for row in rows]
    return rows


def changed_rows(entity: Any) -> list[dict[str, Any]]:
    version = {"version": 1} if entity is Versioned else {}
    return [{"id": number, "n": 500 + number, **version} for number in range(COUNT)]


class Ours:
    """Our paths; `many` is above the limit from which COPY is used."""

    def __init__(self, database: Database, settings: Settings, *, many: bool) -> None:
        self._database = database
        batch = settings.batch.model_copy(update={"copy_from_rows": 1 if many else 10**9})
        self._bulk = Bulk(None, batch, database)

    async def insert(self, entity: Any) -> None:
        await self._bulk.insert(entity, new_rows(entity))

    async def update(self, entity: Any) -> None:
        assert await self._bulk.update(entity, changed_rows(entity)) == COUNT

    async def flush(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine, expire_on_commit=False) as session:
            connection = await session.connection()
            await change(session, entity)
            driver = await Driver.from_connection(connection)
            await flush_changes(session.sync_session, connection, await driver.begin())
            await session.commit()


class Theirs:
    """SQLAlchemy's paths."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine) as session, session.begin():
            await session.execute(insert(entity), new_rows(entity))

    async def update(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine) as session, session.begin():
            await session.execute(update(entity), changed_rows(entity))

    async def flush(self, entity: Any) -> None:
        async with AsyncSession(self._database.engine, expire_on_commit=False) as session:
            await change(session, entity)
            await session.commit()


async def change(session: AsyncSession, entity: Any) -> None:
    """Change every object."""
    for row in (await session.scalars(select(entity))).all():
        row.n += 5
        if entity is Embedded:
            row.vector = Elements(7, row.id)
        elif entity is Mutated:
            row.document["changed"] = row.id
        elif entity is Composite:
            row.point = Point(row.id, 3)


async def outcome(database: Database, entity: Any, how: str, write: Callable[[Any], Awaitable[None]]) -> Any:
    """Return the error of a way of writing, or None, and all rows as the server shows them."""
    prepare = sa.inspect(entity).tables
    names = [f'{SCHEMA}."{table.name}"' for table in prepare]
    async with database.engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"))
        await connection.execute(text(f'ALTER SEQUENCE {SCHEMA}."odd seq" RESTART'))
    if how != "insert":
        await Theirs(database).insert(entity)
    failed = None
    try:
        await write(entity)
    except Exception as error:
        failed = type(error)
    async with database.engine.connect() as connection:
        rows = [sorted(await connection.scalars(text(f"SELECT t::text FROM {name} AS t"))) for name in names]
    assert failed is None or not issubclass(failed, AssertionError)
    return failed, rows


async def test_writes_to_every_kind_of_mapped_class_are_those_of_sqlalchemy(
    tables: Database, settings: Settings
) -> None:
    found = []
    for entity in ENTITIES:
        for how in ("insert", "update", "flush"):
            theirs = await outcome(tables, entity, how, getattr(Theirs(tables), how))
            assert theirs[0] is None, f"{how} of {entity.__name__}: {theirs[0]}"
            for many in (False, True) if how == "insert" else (True,):
                ours = await outcome(tables, entity, how, getattr(Ours(tables, settings, many=many), how))
                if ours != theirs:
                    found.append(
                        f"{how} of {entity.__name__}, {many=}:\n   ours {ours!r:.300}\n theirs {theirs!r:.300}"
                    )
    assert found == [], "\n".join(found)


async def test_bulk_upsert_gives_defaults_of_the_context(tables: Database, settings: Settings) -> None:
    bulk = Bulk(None, settings.batch, tables)

    assert await bulk.upsert(Defaulted, new_rows(Defaulted)) == COUNT

    async with tables.engine.connect() as connection:
        copied = await connection.scalars(select(Defaulted.copied).order_by(Defaulted.id))
        assert list(copied) == [number * 10 for number in range(COUNT)]


async def test_bulk_update_of_a_versioned_class_checks_the_version(tables: Database, settings: Settings) -> None:
    bulk = Bulk(None, settings.batch, tables)
    await bulk.insert(Versioned, new_rows(Versioned))

    with pytest.raises(StaleDataError):
        await bulk.update(Versioned, [{"id": 1, "n": 2, "version": 9}])
    with pytest.raises(BulkError, match="no value for version"):
        await bulk.update(Versioned, [{"id": 1, "n": 2}])
    with pytest.raises(BulkError, match="version counter"):
        await bulk.update(Versioned, [{"id": 1, "n": 2, "version": 1}], by=["n"])
    async with tables.engine.connect() as connection:
        assert await connection.scalar(select(Versioned.version).where(Versioned.id == 1)) == 1


async def test_bulk_insert_calls_a_default_once_for_each_row(tables: Database, settings: Settings) -> None:
    async with tables.engine.begin() as connection:
        await connection.run_sync(COUNTED.create)
    CALLS.clear()

    await Bulk(None, settings.batch, tables).insert(COUNTED, [{"n": number} for number in range(3)])

    assert CALLS == [0, 1, 2]
