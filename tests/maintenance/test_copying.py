"""`copy_table`: each row is copied once, by the server."""

from __future__ import annotations

from typing import Any

import pytest
from asyncpg.exceptions import UniqueViolationError
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, literal, update

from tests.maintenance.shop import Shop
from tests.maintenance.tables import NOW, OldVisit, Total, Visit, keyless
from worker.errors import RegistrationError
from worker.maintenance import copy_table
from worker.maintenance.copying import OnConflict


async def test_rows_are_copied_once_over_an_abort(shop: Shop) -> None:
    await shop.fill_visits(45)
    job = copy_table(Visit, OldVisit, where=Visit.shop < 2, size=10)
    await shop.break_off(job, 25)
    assert await shop.count(OldVisit) == 13  # of the first 20 visits
    assert await shop.resume(job) == 30
    columns = [column.key for column in Visit.__table__.columns]
    expected = await shop.list(*[getattr(Visit, name) for name in columns])
    assert await shop.list(*[getattr(OldVisit, name) for name in columns]) == [row for row in expected if row[1] < 2]
    assert set((await shop.read_log("INSERT", "old visit")).values()) == {1}


async def test_existing_rows_fail_are_kept_or_overwritten(shop: Shop) -> None:
    await shop.fill_visits(10)
    await shop.fill(OldVisit, [{"id": 3, "shop": 9, "page": "", "at": NOW.replace(tzinfo=None), "seconds": 9}])
    with pytest.raises(UniqueViolationError):
        await shop.run(copy_table(Visit, OldVisit))
    assert await shop.run(copy_table(Visit, OldVisit, on_conflict="skip")) == 9
    assert await shop.list(OldVisit.shop) == sorted([n % 3 for n in range(1, 11) if n != 3] + [9])
    assert await shop.run(copy_table(Visit, OldVisit, on_conflict="update", conflict_key="id")) == 10
    assert await shop.list(OldVisit.shop) == sorted(n % 3 for n in range(1, 11))


async def test_columns_are_computed(shop: Shop) -> None:
    await shop.fill_visits(10)
    job = copy_table(Visit, Total, columns={Total.shop: Visit.id, "visits": func.length(Visit.page) + literal(1)})
    assert await shop.run(job) == 10
    assert await shop.list(Total.shop, Total.visits) == [(n, 3) for n in range(1, 11)]


@pytest.mark.parametrize("on_conflict", ["error", "skip", "update"])
async def test_keys_of_columns_may_differ_from_their_names(changed_shop: Shop, on_conflict: OnConflict) -> None:
    shop, metadata = changed_shop, MetaData()
    source, target = (
        Table(
            name,
            metadata,
            Column("the id", Integer, key=f"{name}_id", primary_key=True),
            Column("x y", Integer, key=f"{name}_x"),
        )
        for name in ("keyed", "copied")
    )
    async with shop.database.engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
    await shop.execute(insert(source), [{"keyed_id": n, "keyed_x": n * 2} for n in (1, 2)])
    assert await shop.run(copy_table(source, target, on_conflict=on_conflict)) == 2
    assert await shop.list(*target.columns) == [(1, 2), (2, 4)]
    await shop.execute(update(source).values(keyed_x=7))
    if on_conflict != "error":
        assert await shop.run(copy_table(source, target, on_conflict=on_conflict)) == 2 * (on_conflict == "update")
        assert await shop.list(target.columns.copied_x) == ([7, 7] if on_conflict == "update" else [2, 4])


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((Visit, Visit), {}, "cannot be copied into itself"),
        ((Visit, Total), {}, 'total lacks id, page, at, seconds of "My Shop".visit: add them, or choose columns='),
        ((Visit, Total), {"columns": {}}, "names no column"),
        ((Visit, Total), {"columns": {"vists": Visit.id}}, "has no such column; did you mean visits?"),
        ((Visit, Total), {"columns": {"visits": 3}}, "the value of visits is 3: give a column or an SQL expression"),
        ((Visit, OldVisit), {"on_conflict": "x"}, "on_conflict='x': give 'error', 'skip', 'update'"),
        ((Visit, Total), {"columns": {"visits": Visit.id}, "on_conflict": "skip"}, "needs a value for shop"),
        ((Visit, OldVisit), {"on_conflict": "skip", "conflict_key": "ids"}, "conflict_key='ids'"),
        ((keyless, keyless.to_metadata(keyless.metadata, name="x")), {}, "keyless has no primary key"),
        ((Visit, OldVisit), {"where": "id < 3"}, "where='id < 3': give a condition"),
        ((Visit, OldVisit), {"key": "nothing"}, "key='nothing'"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        copy_table(*arguments, **options)
