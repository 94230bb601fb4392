"""`purge` follows foreign keys from and to partitions, at each level, and deletes exactly what belongs to its rows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from tests.maintenance.shop import Shop
from worker.maintenance import purge

ROWS = 12
#: Which table holds the foreign key, and which one it refers to: the partitioned one, or one of its two partitions.
PLACES = ("", "_1", "_2_1")


def make_tables(links: list[tuple[str, str]], on_delete: str) -> list[str]:
    """Return the statements that make three tables, a to c, each partitioned twice, with foreign keys."""
    made = ["DROP TABLE IF EXISTS a, b, c CASCADE"]
    for name in "abc":
        made += [
            f"CREATE TABLE {name} (id int, other int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
            f"CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (5)",
            f"CREATE TABLE {name}_2 (v int, other int, id int NOT NULL) PARTITION BY RANGE (id)",  # in another order
            f"ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (5) TO (100)",
            f"CREATE TABLE {name}_2_1 PARTITION OF {name}_2 FOR VALUES FROM (5) TO (9)",
            f"CREATE TABLE {name}_2_2 PARTITION OF {name}_2 FOR VALUES FROM (9) TO (100)",
        ]
    for child, parent in links:
        made.append(f"ALTER TABLE {child} ADD FOREIGN KEY (other) REFERENCES {parent} (id) {on_delete}")
    return made


def belong(rows: dict[int, int | None], parents: set[int]) -> set[int]:
    """Return the rows that refer to one of some rows."""
    return {key for key, other in rows.items() if other in parents}


def ids_of(place: str) -> set[int]:
    """Return the ids in a table."""
    return {"": set(range(1, ROWS + 1)), "_1": set(range(1, 5)), "_2_1": set(range(5, 9))}[place]


def fill(child: str, parent: str) -> dict[int, int | None]:
    """Return the reference of each row: rows outside of the table with the foreign key refer to nothing."""
    there = sorted(ids_of(parent))
    return {n: there[n % len(there)] if n in ids_of(child) else None for n in range(1, ROWS + 1)}


def list_places() -> list[Any]:
    """Return where the foreign keys are, and what they refer to; those with more than two partitions take long."""
    found = list(itertools.product(PLACES, repeat=4))
    few = [places for places in found if sum(map(bool, places)) <= (1 if "_2_1" in places else 2)]
    return [pytest.param(one, marks=[] if one in few else [pytest.mark.long]) for one in found]


@pytest.mark.parametrize("children", ["first", pytest.param("with_parents", marks=pytest.mark.long)])
@pytest.mark.parametrize("places", list_places(), ids="/".join)
async def test_grandchildren_by_way_of_partitions_are_deleted(
    shop: Shop, children: Any, places: tuple[str, str, str, str]
) -> None:
    b_child, a_parent, c_child, b_parent = places
    links = [(f"b{b_child}", f"a{a_parent}"), (f"c{c_child}", f"b{b_parent}")]
    rows = {"b": fill(b_child, a_parent), "c": fill(c_child, b_parent)}
    statements = make_tables(links, "")
    statements.append(f"INSERT INTO a SELECT n, NULL, 1 FROM generate_series(1, {ROWS}) n")
    for name, refers in rows.items():
        values = ", ".join(f"({key}, {'NULL' if other is None else other}, 1)" for key, other in refers.items())
        statements.append(f"INSERT INTO {name} VALUES {values}")
    await shop.execute_all(statements)
    table = Table("a", MetaData(), Column("id", Integer, primary_key=True))
    gone = {1, 2, 5, 6, 9}
    assert await shop.run(purge(table, where=table.columns.id.in_(gone), children=children, size=3)) == len(gone)
    gone_b = belong(rows["b"], gone)
    left = {"a": set(ids_of("")) - gone, "b": set(rows["b"]) - gone_b, "c": set(rows["c"]) - belong(rows["c"], gone_b)}
    found = {name: set((await shop.execute(f"SELECT id FROM {name}")).scalars()) for name in "abc"}
    await shop.execute_all(["DROP TABLE a, b, c CASCADE"])
    assert found == left


@pytest.mark.parametrize("children", ["first", "with_parents"])
async def test_rows_that_refer_to_another_partition_with_the_same_value_are_kept(shop: Shop, children: Any) -> None:
    statements = make_tables([], "")
    statements += [
        "ALTER TABLE a_1 ADD UNIQUE (v)",
        "ALTER TABLE b ADD FOREIGN KEY (v) REFERENCES a_1 (v)",
        "INSERT INTO a SELECT n, NULL, CASE WHEN n < 5 THEN n ELSE 1 END FROM generate_series(1, 12) n",
        "INSERT INTO b SELECT n, NULL, n FROM generate_series(1, 4) n",
    ]
    await shop.execute_all(statements)
    table = Table("a", MetaData(), Column("id", Integer, primary_key=True), Column("v", Integer))
    assert await shop.run(purge(table, where=table.columns.id.in_([2, 6, 9]), children=children)) == 3
    found = set((await shop.execute("SELECT id FROM b")).scalars())
    await shop.execute_all(["DROP TABLE a, b, c CASCADE"])
    assert found == {1, 3, 4}
