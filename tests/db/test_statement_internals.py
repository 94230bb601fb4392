"""SQLAlchemy's private parts that the package reads: if a release changes one of them, these tests fail clearly."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Select, Table, and_, event, func, insert, select, true, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, Session, aliased, joinedload

from tests.models import Author, Book, authors
from worker.db.engine import Database
from worker.db.statement_internals import (
    changed_attributes,
    changed_states,
    cut_rows,
    has_listeners,
    is_same_table,
    mark_as_flushed,
    read_select_clauses,
    replace_source,
    requires_unique,
    rewrites_statements,
    updated_names,
    without_true,
)

CHANGED = (
    f"SQLAlchemy {sqlalchemy.__version__} has changed {{}}: adapt worker/db/statement_internals.py, or exclude this "
    f"version in pyproject.toml"
)

PLAIN = select(Author)


@pytest.mark.parametrize(
    ("clause", "statement"),
    [
        ("offset", PLAIN.offset(1)),
        ("limit", PLAIN.limit(1)),
        ("limit", PLAIN.fetch(1)),
        ("distinct", PLAIN.distinct()),
        ("extended", PLAIN.ext(distinct_on(Author.name))),
        ("having", PLAIN.having(Author.id > 1)),
        ("for_update", PLAIN.with_for_update()),
    ],
)
def test_read_select_clauses_tells_a_clause_that_is_there(clause: str, statement: Select[Any]) -> None:
    assert getattr(read_select_clauses(statement), clause) is True, CHANGED.format(f"the private name of {clause}")
    assert getattr(read_select_clauses(PLAIN), clause) is False, CHANGED.format(f"the private name of {clause}")


def test_read_select_clauses_returns_the_expressions_of_group_by_and_order_by() -> None:
    statement = select(Author.name, func.count()).group_by(Author.name).order_by(Author.name.desc(), Author.id)
    clauses = read_select_clauses(statement)
    assert [str(clause) for clause in clauses.group_by] == ["author.name"], CHANGED.format("_group_by_clauses")
    assert [str(clause) for clause in clauses.order_by] == ["author.name DESC", "author.id"], CHANGED.format(
        "_order_by_clauses"
    )
    assert (read_select_clauses(PLAIN).group_by, read_select_clauses(PLAIN).order_by) == ((), ())


@pytest.mark.parametrize(
    "statement",
    [
        update(Author).values(name="x", code="y"),
        update(Author).values({Author.name: "x", Author.code: "y"}),
        update(Author.__table__).values(name="x").values(code="y"),
        update(Author).ordered_values((Author.name, "x"), (Author.code, "y")),
        update(Author).ordered_values(("name", "x"), ("code", "y")),
    ],
)
def test_updated_names_returns_what_an_update_sets(statement: Any) -> None:
    assert updated_names(statement) == ["name", "code"], CHANGED.format("Update._values")


def test_updated_names_of_an_update_without_values_is_empty() -> None:
    assert updated_names(update(Author)) == []


def test_replace_source_changes_the_select_of_a_copy() -> None:
    source = select(Author.id, Author.name)
    statement = insert(Author.__table__).from_select(["id", "name"], source)
    part = replace_source(statement, source.where(Author.id > 5))
    assert "WHERE" in str(part), CHANGED.format("Insert.select")
    assert "WHERE" not in str(statement), CHANGED.format("the copy of an Insert")


def test_read_select_clauses_tells_the_old_form_of_distinct_on() -> None:
    with pytest.warns(sqlalchemy.exc.SADeprecationWarning):
        statement = PLAIN.distinct(Author.name)
    assert read_select_clauses(statement).distinct, CHANGED.format("_distinct_on")


def test_is_same_table_sees_through_the_orms_annotations() -> None:
    table: Any = Author.__table__
    (entity,) = select(Author).get_final_froms()
    alias: Any = aliased(Author)
    (aliased_from,) = select(alias).get_final_froms()
    assert isinstance(table, Table)
    assert is_same_table(entity, table), CHANGED.format("the annotations of mapped tables")
    assert is_same_table(alias.id.__clause_element__().table, aliased_from)
    assert not is_same_table(aliased_from, table)
    assert not is_same_table(table, aliased_from)
    assert not is_same_table(table, Book.__table__)


async def test_cut_rows_returns_rows_with_names_and_without_the_hidden_columns(database: Database) -> None:
    async with database.engine.connect() as connection:
        found = (await connection.execute(sqlalchemy.text("SELECT 1 AS a, 2 AS b, 3 AS hidden"))).all()
    (row,) = cut_rows(found, ["a", "b"])
    assert (tuple(row), row._fields, row.a, row._mapping["b"]) == ((1, 2), ("a", "b"), 1, 2), CHANGED.format(
        "IteratorResult or SimpleResultMetaData"
    )


async def test_changed_attributes_and_mark_as_flushed_agree_with_the_sessions_own_flush(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(insert(Author), authors(2))
    async with AsyncSession(database.engine) as session:
        one, other = (await session.scalars(select(Author).order_by(Author.id))).all()
        one.seen, one.name, other.seen = 5, "changed", 0
        state: Any = sqlalchemy.inspect(one)
        assert changed_attributes(state) == {"seen": 0, "name": "n1"}, CHANGED.format("InstanceState.committed_state")
        found = {changed.obj() for changed in changed_states(session.sync_session)}
        assert found == {one, other}, CHANGED.format("IdentityMap._modified")
        mark_as_flushed(session.sync_session, [(state, state.dict)])
        assert one not in session.dirty, CHANGED.format("InstanceState._commit_all_states")
        assert changed_attributes(state) == {}, CHANGED.format("InstanceState._commit_all_states")
        assert other in session.dirty
        await session.flush()
        assert (await session.execute(select(Author.__table__.c.seen).where(Author.id == 1))).scalar_one() == 0
        one.seen = 6  # the session still notices the next change
        await session.flush()
        assert (await session.execute(select(Author.__table__.c.seen).where(Author.id == 1))).scalar_one() == 6


async def test_requires_unique_tells_objects_with_joined_collections(database: Database) -> None:
    joined = select(Author).options(joinedload(Author.books))
    async with AsyncSession(database.engine) as session:
        assert requires_unique(await session.execute(joined)) is True, CHANGED.format("Result._unique_filter_state")
        assert requires_unique(await session.execute(select(Author))) is False, CHANGED.format(
            "Result._unique_filter_state"
        )


def test_has_listeners_hears_of_sessions_mappers_and_all_mappers() -> None:
    mapper: Any = sqlalchemy.inspect(Author)
    session = Session()

    def listener(*arguments: Any) -> None:
        """Ignore events."""

    for target, heard, name in (
        (session, session, "before_flush"),
        (Author, mapper, "before_update"),
        (Mapper, mapper, "after_update"),
    ):
        assert not has_listeners(heard, name)
        sqlalchemy.event.listen(target, name, listener)
        assert has_listeners(heard, name), CHANGED.format(f"dispatch of {name}")
        sqlalchemy.event.remove(target, name, listener)
        assert not has_listeners(heard, name), CHANGED.format(f"dispatch of {name}")


async def test_rewrites_statements_tells_a_listener_that_may_change_them(database: Database) -> None:
    def look(*_: Any) -> None:
        """Return nothing."""

    def change(*arguments: Any) -> Any:
        return arguments[2:4]

    engine = database.engine.sync_engine
    for kind in ("before_execute", "before_cursor_execute"):
        for listener, options in ((look, {}), (change, {"retval": True})):
            event.listen(engine, kind, listener, **options)
            async with database.engine.connect() as connection:
                told = rewrites_statements(connection)
            event.remove(engine, kind, listener)
            assert told is bool(options), CHANGED.format("how it wraps listeners")
    async with database.engine.connect() as connection:
        assert not rewrites_statements(connection)


def test_without_true_removes_conditions_that_always_hold() -> None:
    always = PLAIN.where(true()).where(and_(true(), true()))
    assert str(without_true(always)) == str(PLAIN), CHANGED.format("_where_criteria")
    some = PLAIN.where(Author.id > 1)
    assert without_true(some) is some
    assert str(without_true(some.where(and_(true(), true())))) == str(some), CHANGED.format("_where_criteria")
