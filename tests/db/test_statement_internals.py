"""SQLAlchemy's private parts that the package reads: a release that changes one of them fails here, in clear text."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Select, Table, func, insert, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import aliased

from tests.models import Author, Book
from worker.db.engine import Database
from worker.db.statement_internals import (
    cut_rows,
    is_same_table,
    read_select_clauses,
    replace_source,
    updated_names,
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
