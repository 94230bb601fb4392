"""Statements of mapped classes that differ from those of their tables: inheritance, annotations, translated schemas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, delete, func, insert, select, text, update
from sqlalchemy.orm import Mapped, aliased, mapped_column, with_polymorphic

from tests.models import Author, Base, authors
from tests.support.contexts import MakeContext
from worker.batch.catalog import sql_text
from worker.db.engine import Database
from worker.errors import UnsupportedStatement


class Employee(Base):
    """Its select joins the tables of its subclasses."""

    __tablename__ = "employee"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(default="")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain", "with_polymorphic": "*"}


class Engineer(Employee):
    """In two tables."""

    __tablename__ = "engineer"

    id: Mapped[int] = mapped_column(ForeignKey("employee.id"), primary_key=True)
    language: Mapped[str] = mapped_column(default="py")
    __mapper_args__ = {"polymorphic_identity": "engineer"}


FLAT = with_polymorphic(Employee, "*", flat=True)


@pytest.mark.parametrize("entity", [Employee, Engineer, FLAT], ids=["root", "subclass", "alias"])
async def test_a_polymorphic_class_is_walked_with_locks_on_its_root(
    context: MakeContext, database: Database, entity: Any
) -> None:
    async with database.transaction() as session:
        session.add_all([Employee(id=n) for n in range(1, 6)] + [Engineer(id=n) for n in range(6, 11)])
    async for batch in context().chunks(select(entity), size=3):
        for one in batch:
            one.name = "x"
    async with database.session() as session:
        changed = await session.scalar(select(func.count()).select_from(Employee).where(Employee.name == "x"))
    assert changed == (5 if entity is Engineer else 10)


async def test_an_alias_whose_rows_cannot_be_locked_is_refused_before_its_first_batch(context: MakeContext) -> None:
    with pytest.raises(UnsupportedStatement, match="set lock=False"):
        async for _ in context().chunks(select(aliased(Employee)), size=3):
            pytest.fail("nothing is read")


@pytest.mark.parametrize("by", [Author.nickname, Author.nickname.desc(), Author.__table__.c.nickname])
@pytest.mark.parametrize("statement", [delete(Author), delete(Author.__table__)], ids=["class", "table"])
async def test_a_sweep_takes_the_key_of_a_class_or_of_its_table(
    context: MakeContext, database: Database, statement: Any, by: Any
) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(insert(Author), [row | {"nickname": f"n{row['id']}"} for row in authors(30)])
        await connection.exec_driver_sql("ALTER TABLE author ALTER nickname SET NOT NULL")
    assert await context().sweep(statement.where(Author.id <= 20), by=by, size=7) == 20


@pytest_asyncio.fixture
async def tenant(database: Database) -> AsyncIterator[Database]:
    """Fifty authors in each of two schemas."""
    async with database.engine.begin() as connection:
        await connection.execute(insert(Author), [row | {"name": "public"} for row in authors(50)])
        await connection.exec_driver_sql("CREATE SCHEMA tenant_7")
        await connection.exec_driver_sql("CREATE TABLE tenant_7.author (LIKE author INCLUDING ALL)")
        await connection.exec_driver_sql("INSERT INTO tenant_7.author SELECT * FROM author WHERE id > 20")
        await connection.exec_driver_sql("UPDATE tenant_7.author SET name = 'tenant'")
    yield database
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("DROP SCHEMA tenant_7 CASCADE")


TRANSLATED = {"schema_translate_map": {None: "tenant_7"}}


@pytest.mark.parametrize("statement", [select(Author), select(Author.id, Author.name)], ids=["class", "columns"])
@pytest.mark.parametrize("lock", [True, False])
async def test_chunks_read_the_translated_schema(
    context: MakeContext, tenant: Database, statement: Any, lock: bool
) -> None:
    loop = context().chunks(statement.execution_options(**TRANSLATED), size=10, lock=lock, count="exact")
    assert [row.name async for batch in loop for row in batch] == ["tenant"] * 30


@pytest.mark.parametrize("statement", [select(Author), select(Author.id, Author.name)], ids=["class", "columns"])
async def test_a_stream_reads_the_translated_schema(context: MakeContext, tenant: Database, statement: Any) -> None:
    loop = context().stream(statement.execution_options(**TRANSLATED).order_by(Author.id), size=10)
    assert [row.name async for batch in loop for row in batch] == ["tenant"] * 30


@pytest.mark.parametrize("kind", ["chunks", "stream"])
async def test_a_table_that_exists_in_the_translated_schema_alone_is_walked(
    context: MakeContext, tenant: Database, kind: str
) -> None:
    table = Table("only", MetaData(), Column("id", Integer, primary_key=True), schema="placeholder")
    async with tenant.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE tenant_7.only AS SELECT generate_series(1, 30) AS id")
        await connection.exec_driver_sql("ALTER TABLE tenant_7.only ADD PRIMARY KEY (id)")
    statement = select(table.c.id).execution_options(schema_translate_map={"placeholder": "tenant_7"})
    ctx = context()
    loop = ctx.chunks(statement, size=10) if kind == "chunks" else ctx.stream(statement.order_by(table.c.id), size=10)
    assert [key async for batch in loop for key in batch] == list(range(1, 31))


async def test_a_sweep_writes_to_the_translated_schema(context: MakeContext, tenant: Database) -> None:
    ctx = context()
    assert await ctx.sweep(update(Author).values(seen=7).execution_options(**TRANSLATED), size=10) == 30
    assert await ctx.sweep(delete(Author).where(Author.id > 30).execution_options(**TRANSLATED), size=10) == 20
    async with tenant.session() as session:
        count = "SELECT count(*), sum(seen) FROM {}.author"
        assert tuple((await session.execute(text(count.format("public")))).one()) == (50, 0)
        assert tuple((await session.execute(text(count.format("tenant_7")))).one()) == (10, 70)


def test_sql_text_names_the_translated_schema() -> None:
    statement = select(Author.id)
    assert "FROM author" in sql_text(statement)
    assert "FROM tenant_7.author" in sql_text(statement.execution_options(**TRANSLATED))
