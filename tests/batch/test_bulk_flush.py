"""One statement writes the changed objects of a batch if the result is the same; otherwise SQLAlchemy writes them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, delete, event, func, select, text
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, selectinload
from sqlalchemy.orm.exc import StaleDataError

from tests.models import Author, Base, Book, Mood, authors
from tests.support.contexts import MakeContext
from worker.batch import bulk_flush as flush
from worker.db.engine import Database

COUNT = 40


class Plain(Base):
    """A column of each type, and no value that the server makes."""

    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(primary_key=True)
    mood: Mapped[Mood | None]
    price: Mapped[Decimal | None]
    at: Mapped[datetime | None]
    note: Mapped[str | None] = mapped_column("The Note", String(10))
    done: Mapped[bool] = mapped_column(default=False)


class Versioned(Base):
    """Counts its versions."""

    __tablename__ = "versioned"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


class Child(Author):
    """Of two tables."""

    __tablename__ = "child"

    id: Mapped[int] = mapped_column(ForeignKey("author.id"), primary_key=True)
    age: Mapped[int]


@pytest.fixture
def updates(database: Database) -> Iterator[list[str]]:
    """The statements that SQLAlchemy itself sends."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("UPDATE") and "worker." not in statement:
            sent.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)


def change(row: Plain) -> None:
    """Change several attributes, by the row's number."""
    n = row.id
    row.done = not row.done
    if n % 2:
        row.mood = Mood.wild if n % 3 else None
    if n % 5 == 0:
        row.price, row.at = Decimal(n) / 7, datetime(2026, 1, 1, n % 24)
    if n % 7 == 0:
        row.note = None if row.note else f"n{n}"
    if n % 11 == 0:
        row.done = not row.done  # back again: nothing has changed


async def walked(context: MakeContext, database: Database) -> list[tuple[Any, ...]]:
    """Change all rows, and return them."""
    ctx = context()
    async with database.transaction() as session:
        await session.execute(delete(Plain))
    await ctx.bulk.insert(Plain, [{"id": n, "part": f"p{n % 3}", "note": "x" if n % 2 else None} for n in range(COUNT)])
    for _ in range(2):
        async for batch in context().chunks(select(Plain), size=15):
            for row in batch:
                change(row)
    async with database.session() as session:
        found = await session.execute(select(*Plain.__table__.columns).order_by(Plain.id))
        return [tuple(row) for row in found]


async def test_the_rows_are_the_same_as_of_the_unit_of_work(
    context: MakeContext, database: Database, updates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = await walked(context, database)
    assert updates == []
    monkeypatch.setattr(flush, "_WORTH_IT", 10**9)
    assert await walked(context, database) == ours
    assert updates != []


async def test_values_of_sql_and_new_objects_are_left_to_sqlalchemy(
    context: MakeContext, database: Database, updates: list[str]
) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    async for batch in ctx.chunks(select(Author), size=15):
        for author in batch:
            author.seen = Author.seen + 1  # type: ignore[assignment]
    assert updates != []
    async for batch in ctx.chunks(select(Author), size=15, name="again"):
        for author in batch:
            author.seen += 1
            batch.session.add(Book(author=author, title="new"))
    async with database.session() as session:
        assert (await session.scalars(select(Author.seen).distinct())).all() == [2]
        assert len((await session.scalars(select(Book.author_id).distinct())).all()) == 30


async def test_listeners_hear_every_update(context: MakeContext, database: Database) -> None:
    heard: list[int] = []

    def listen(mapper: Any, connection: Any, author: Author) -> None:
        heard.append(author.id)

    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    event.listen(Author, "after_update", listen)
    try:
        async for batch in ctx.chunks(select(Author), size=15):
            for author in batch:
                author.seen += 1
    finally:
        event.remove(Author, "after_update", listen)
    assert sorted(heard) == list(range(1, 31))


async def test_versions_are_counted(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        session.add_all(Versioned(id=n, name="x") for n in range(30))
    async for batch in context().chunks(select(Versioned), size=15):
        for row in batch:
            row.name = "y"
    async with database.session() as session:
        assert (await session.scalars(select(Versioned.version).distinct())).all() == [2]


async def test_objects_of_two_tables_are_written_to_both(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        session.add_all(Child(**row, age=1) for row in authors(30))
    async for batch in context().chunks(select(Child), size=15):
        for child in batch:
            child.age, child.seen = 2, 3
    async with database.session() as session:
        rows = await session.execute(select(Child.age, Child.seen).distinct())
        assert rows.all() == [(2, 3)]


async def test_a_row_that_is_gone_is_an_error(context: MakeContext, database: Database) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    with pytest.raises(StaleDataError):
        async for batch in ctx.chunks(select(Author), size=15):
            await batch.bulk.delete(Author, [batch[3].id])
            for author in batch:
                author.seen += 1
    await ctx._attempt.fail()


async def test_what_is_written_before_a_bulk_operation_is_seen_by_it(context: MakeContext, database: Database) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    async for batch in ctx.chunks(select(Author), size=15):
        for author in batch:
            author.region = 99
        await batch.bulk.update(
            Author, [{"region": 99, "code": author.code, "seen": 5} for author in batch], by=["region", "code"]
        )
        for author in batch:
            author.nickname = f"{author.id}"  # and again, after it
    async with database.session() as session:
        found = await session.execute(select(Author.region, Author.seen, Author.nickname.is_not(None)).distinct())
        assert found.all() == [(99, 5, True)]


async def test_moments_keep_their_zone(context: MakeContext, database: Database) -> None:
    moment = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    from tests.models import Sample

    ctx = context()
    await ctx.bulk.insert(Sample, [{"id": n} for n in range(20)])
    async for batch in ctx.chunks(select(Sample)):
        for row in batch:
            row.at, row.tags, row.data = moment, ["a"], {"k": [1]}
    async with database.session() as session:
        rows = (await session.execute(select(Sample.at, Sample.tags, Sample.data, Sample.changes))).all()
    assert set(map(repr, rows)) == {repr((moment, ["a"], {"k": [1]}, "changed"))}


class Shape(Base):
    """One table for several classes."""

    __tablename__ = "shape"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    width: Mapped[int] = mapped_column(default=0)
    radius: Mapped[int | None]
    remark: Mapped[str | None] = mapped_column(deferred=True)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "shape"}

    @hybrid_property
    def area(self) -> int:
        """Works on the object and in SQL."""
        return self.width * 2


class Circle(Shape):
    """Has a radius."""

    __mapper_args__ = {"polymorphic_identity": "circle"}


async def test_classes_of_one_table_hybrids_and_deferred_columns_are_walked(
    context: MakeContext, database: Database
) -> None:
    rows = [
        {"id": n, "kind": "circle" if n % 2 else "shape", "width": n, "radius": n if n % 2 else None, "remark": f"r{n}"}
        for n in range(30)
    ]
    await context().bulk.insert(Shape.__table__, rows)
    async for batch in context().chunks(select(Shape).where(Shape.area >= 10), size=10):
        for shape in batch:
            assert type(shape) is (Circle if shape.id % 2 else Shape)
            assert shape.area == 2 * shape.width
            assert "remark" not in shape.__dict__
            if isinstance(shape, Circle):
                shape.radius = -1
            else:
                shape.width = -1
            if shape.id == 20:
                shape.remark = "said"
    async with database.session() as session:
        found = (await session.execute(text("SELECT id, width, radius, remark FROM shape ORDER BY id"))).all()
    for id_, width, radius, remark in found:
        changed = id_ >= 5
        assert width == (-1 if changed and id_ % 2 == 0 else id_)
        assert radius == (None if id_ % 2 == 0 else -1 if changed else id_)
        assert remark == ("said" if id_ == 20 else f"r{id_}")


async def test_a_relationship_is_loaded_once_a_batch(context: MakeContext, database: Database) -> None:
    await context().bulk.insert(Author, authors(30))
    await context().bulk.insert(Book, [{"id": n, "author_id": n % 30 + 1, "title": f"t{n}"} for n in range(90)])
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "FROM book" in statement:
            asked.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        async for batch in context().chunks(select(Author).options(selectinload(Author.books)), size=10):
            for author in batch:
                author.seen = len(author.books)
                author.books[0].title = f"first of {author.id}"
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    assert len(asked) == 3
    async with database.session() as session:
        assert set(await session.scalars(select(Author.seen))) == {3}
        assert await session.scalar(select(func.count()).where(Book.title.startswith("first of"))) == 30


class Placed(Base):
    """Positions that are unique: the order of the updates matters."""

    __tablename__ = "placed"

    id: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(unique=True)


async def test_unique_columns_are_written_in_the_order_of_the_unit_of_work(
    context: MakeContext, database: Database
) -> None:
    await context().bulk.insert(Placed, [{"id": n, "position": n} for n in range(1, 101)])
    async for batch in context().chunks(select(Placed), size=100):
        for row in batch:
            row.position -= 1
    async with database.session() as session:
        found = await session.execute(select(Placed.id, Placed.position).order_by(Placed.id))
        assert [tuple(row) for row in found] == [(n, n - 1) for n in range(1, 101)]


async def test_triggers_fire_for_each_row_as_it_is_written(
    context: MakeContext, database: Database, updates: list[str]
) -> None:
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE FUNCTION heard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
        )
        await connection.exec_driver_sql(
            "CREATE TRIGGER heard AFTER UPDATE ON author FOR EACH STATEMENT EXECUTE FUNCTION heard()"
        )
    await context().bulk.insert(Author, authors(20))
    async for batch in context().chunks(select(Author), size=20):
        for author in batch:
            author.seen = 5
    assert updates != []
