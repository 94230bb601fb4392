"""`dedupe`: one of equal rows stays."""

from __future__ import annotations

from typing import Any

import pytest

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Animal, Customer, Dog, Visit, keyless
from worker.errors import RegistrationError, UnsupportedStatement
from worker.maintenance import dedupe


@pytest.mark.parametrize(("keep", "kept"), [("first", range(1, 31)), ("last", range(16, 46))])
async def test_one_of_equal_rows_stays_over_an_abort(shop: Shop, keep: Any, kept: range) -> None:
    await shop.fill_visits(45)  # shop and page repeat after 30
    job = dedupe(Visit, [Visit.shop, "page"], keep=keep, size=5)
    await shop.break_off(job, 44 if keep == "first" else 14)
    assert await shop.count(Visit) == 35
    assert await shop.resume(job) == 15
    assert await shop.list(Visit.id) == list(kept)
    assert set((await shop.read_log("DELETE", "visit")).values()) == {1}


async def test_another_column_decides_which_row_stays_and_nulls_differ_unless_told(shop: Shop) -> None:
    rows = [(1, "a", 5), (2, "a", 9), (3, "a", 9), (4, None, 1), (5, None, 2)]
    await shop.fill(Visit, [{"id": n, "shop": 1, "page": page, "seconds": s} for n, page, s in rows])
    assert await shop.run(dedupe(Visit, "page", keep="last", order=Visit.seconds)) == 2
    assert await shop.list(Visit.id) == [3, 4, 5]
    assert await shop.run(dedupe(Visit, "page", order="seconds", nulls_are_equal=True)) == 1
    assert await shop.list(Visit.id) == [3, 4]
    assert await shop.run(dedupe(Visit, "shop", order="page")) == 1  # a null comes first
    assert await shop.list(Visit.id) == [4]


@pytest.mark.parametrize(("keep", "kept"), [("first", [1, 2, 3, 5, 8]), ("last", [1, 2, 4, 7, 8])])
async def test_rows_of_other_classes_of_the_table_are_neither_deleted_nor_kept_instead(
    shop: Shop, keep: Any, kept: list[int]
) -> None:
    # Of the names of dogs, a is in the rows 3 and 4, and b in 5, 6 and 7.
    kinds = ["animal", "animal", "dog", "dog", "dog", "poodle", "poodle", "animal"]
    names = ["a", "a", "a", "a", "b", "b", "b", "b"]
    rows = [{"id": n, "kind": kind, "called": name} for n, (kind, name) in enumerate(zip(kinds, names, strict=True), 1)]
    await shop.fill(Animal, rows)
    assert await shop.run(dedupe(Dog, Dog.called, keep=keep, size=3)) == 3
    assert await shop.list(Animal.id) == kept
    assert await shop.run(dedupe(Animal, "name", order="kind")) == len(kept) - 2


async def test_rows_that_others_refer_to_are_refused(shop: Shop) -> None:
    with pytest.raises(UnsupportedStatement, match=r"refer to .*Customer.* prevent its rows from being deleted"):
        await shop.run(dedupe(Customer, "slug"))


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((Visit, "pages"), {}, "by='pages': .*did you mean page"),
        ((Visit, []), {}, "by= names no column"),
        ((Visit, ["id", "page"]), {}, "holds the primary key, so no two rows are equal"),
        ((Visit, "page"), {"keep": "best"}, "keep='best': give 'first' or 'last'"),
        ((Visit, "page"), {"order": "age"}, "order='age'"),
        ((keyless, "a"), {}, "keyless has no primary key"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        dedupe(*arguments, **options)
