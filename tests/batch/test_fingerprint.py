"""The fingerprint of a walk: equal for the same rows in the same order, different for other rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import ARRAY, DateTime, Select, and_, any_, func, literal, literal_column, select, text, true
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, joinedload, mapped_column

from tests.models import Author, Book
from worker.batch.fingerprint import fingerprint, select_fingerprint
from worker.batch.keyset_select import KeysetSelect
from worker.batch.stream import StreamSource


class Before(DeclarativeBase):
    """The models before a deploy."""


class After(DeclarativeBase):
    """The models after it."""


class Account(Before):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    age: Mapped[int]


class AccountWithNote(After):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    age: Mapped[int]
    note: Mapped[str | None]


def walk(statement: Select[Any]) -> str:
    """Return the fingerprint of a walk in chunks."""
    return KeysetSelect(statement, by=None, lock=True).fingerprint


def test_a_new_column_of_the_model_keeps_the_fingerprint() -> None:
    before, after = select(Account).where(Account.age > 5), select(AccountWithNote).where(AccountWithNote.age > 5)
    assert walk(before) == walk(after)
    assert select_fingerprint(before.order_by(Account.id)) == select_fingerprint(after.order_by(AccountWithNote.id))


def test_options_and_names_of_aliases_keep_the_fingerprint() -> None:
    plain = select(Book).join(Author, Book.author_id == Author.id)
    assert walk(plain) == walk(plain.options(joinedload(Book.author)))
    one, two = (aliased(Author, name=name) for name in ("writer", "author_of_it"))
    named = [select(Book).join(each, Book.author_id == each.id).where(each.seen > 1) for each in (one, two)]
    assert walk(named[0]) == walk(named[1])
    assert walk(named[0]) != walk(plain)
    unnamed = aliased(Author)
    assert walk(select(Book).join(unnamed, Book.author_id == unnamed.id).where(unnamed.seen > 1)) == walk(named[0])


DECORATIONS: dict[str, Any] = {
    "prefix": lambda statement: statement.prefix_with("/* ticket 7 */"),
    "prefix on a line": lambda statement: statement.prefix_with('-- it\'s "new"\n'),
    "suffix": lambda statement: statement.suffix_with("/* $$ ' */"),
    "statement hint": lambda statement: statement.with_statement_hint("/*+ SeqScan(author) */"),
    "true": lambda statement: statement.where(true()),
    "true and true": lambda statement: statement.where(and_(true(), true())),
    "execution option": lambda statement: statement.execution_options(note=1),
}


@pytest.mark.parametrize("decoration", DECORATIONS)
@pytest.mark.parametrize("statement", [select(Author), select(Author).where(Author.seen > 5)], ids=["all", "some"])
def test_comments_hints_and_conditions_that_always_hold_keep_the_fingerprint(
    decoration: str, statement: Select[Any]
) -> None:
    decorated = DECORATIONS[decoration](statement)
    assert walk(decorated) == walk(statement)
    ordered = [select_fingerprint(each.order_by(Author.id)) for each in (statement, decorated)]
    assert ordered[0] == ordered[1]


@pytest.mark.parametrize(
    "quoted",
    ["'/* {} */'", "E'\\' /* {} */'", "'it''s -- {}'", '"/* {} */"', "$$/* {} */$$", "$a$ $$ -- {} $a$"],
)
def test_comments_inside_of_quotes_are_compared(quoted: str) -> None:
    one, two = (walk(select(Author).where(literal_column(quoted.format(word)) != text("''"))) for word in "ab")
    assert one != two


def test_the_columns_of_a_distinct_or_a_group_count_because_they_decide_the_rows() -> None:
    names = select(Author.name).distinct().order_by(Author.name)
    both = select(Author.name, Author.seen).distinct().order_by(Author.name)
    assert select_fingerprint(names) != select_fingerprint(both)


def test_a_stream_compares_its_order() -> None:
    by_id, by_name = (select(Author).order_by(column) for column in (Author.id, Author.name))
    assert select_fingerprint(by_id) != select_fingerprint(by_name)
    assert StreamSource.kind == "stream"


@pytest.mark.parametrize(
    "other",
    [
        select(Author).where(Author.seen > 6),
        select(Author).where(Author.seen >= 5),
        select(Author).where(Author.id > 5),
        select(Author).where(Author.seen > 5, Author.id > 0),
        select(Author).join(Book, Book.author_id == Author.id).where(Author.seen > 5),
        select(Author),
    ],
)
def test_other_rows_have_another_fingerprint(other: Select[Any]) -> None:
    assert walk(select(Author).where(Author.seen > 5)) != walk(other)


def test_moments_from_the_clock_are_not_compared_and_values_are_not_shown() -> None:
    now = datetime.now(UTC)
    one, two = (
        select(Author).where(func.now() > moment, Author.name == "s3cret") for moment in (now, now - timedelta(1))
    )
    assert walk(one) == walk(two)
    assert "s3cret" not in walk(one)


def test_lists_and_ranges_of_moments_are_not_compared() -> None:
    now = datetime.now(UTC)
    days = [now - timedelta(number) for number in range(4)]

    def of(moments: list[datetime], span: Range[datetime]) -> str:
        times = literal(moments, ARRAY(DateTime(timezone=True)))
        conditions = func.now().in_(moments), func.now() == any_(times), func.f(span)
        return walk(select(Author).where(*conditions))

    assert of(days[:2], Range(days[1], now)) == of(days[2:], Range(days[2], None))
    assert of(days[:2], Range(days[1], now)) != of(days[1:], Range(days[1], now))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.decimals(allow_nan=False, allow_infinity=False, places=2).map(Decimal),
    st.uuids().map(lambda one: UUID(str(one))),
    st.lists(st.integers(0, 9), max_size=4),
)


@given(VALUES, VALUES)
def test_fingerprints_are_equal_if_and_only_if_the_values_are(one: Any, two: Any) -> None:
    def made(value: Any) -> str:
        return fingerprint(select(Author.id).where(func.f(value)))

    assert (made(one) == made(two)) == (one == two and type(one) is type(two))
