"""`purge`: no row stays without its children, whatever its condition reads, and whatever keeps it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import Column as C
from sqlalchemy import (
    ColumnElement,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    column,
    func,
    literal_column,
    select,
    table,
    text,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from tests.maintenance.shop import Shop
from worker.errors import UnsupportedStatement, UsageError
from worker.maintenance import purge
from worker.maintenance.condition_reads import find_dependence
from worker.maintenance.target import find_target

metadata = MetaData()
parent = Table("parent", metadata, C("id", Integer, primary_key=True), C("v", Text), C("last_child", Integer))
child = Table("child", metadata, C("id", Integer, primary_key=True), C("parent_id", Integer))
view = Table("child_view", metadata, C("parent_id", Integer))
part = Table("child_part", metadata, C("parent_id", Integer))
hidden = Table("hidden", metadata, C("child_id", Integer))

#: Parents 1 and 2 have children.
TABLES = [
    "DROP TABLE IF EXISTS parent, child, child_part, hidden CASCADE",
    "CREATE TABLE parent (id int PRIMARY KEY, v text, last_child int)",
    "CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent)",
    "CREATE INDEX ON child (parent_id)",
    "INSERT INTO parent VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', NULL)",
    "INSERT INTO child VALUES (1, 1), (2, 2)",
    "ALTER TABLE parent ADD FOREIGN KEY (last_child) REFERENCES child ON DELETE SET NULL",
]


class Compiled(ColumnElement[bool]):
    """An element of the application: its SQL is known only when it is compiled."""

    inherit_cache = False


@compiles(Compiled)
def _compile(element: Any, compiler: Any, **_: Any) -> str:
    return "EXISTS (SELECT FROM child WHERE parent_id = parent.id)"


class has_child(GenericFunction[bool]):
    """A function of the application."""

    inherit_cache = True


async def purge_parents(shop: Shop, condition: Any, *more: str) -> tuple[int, list[int], list[int]]:
    """Make the tables, and run a purge. Return its result, and the rows that are left."""
    await shop.execute_all([*TABLES, *more])
    done = await shop.run(purge(parent, where=condition, name="purge_parents"))
    return done, await shop.list(parent.c.id), await shop.list(child.c.parent_id)


def read_by(source: Any) -> Any:
    """Return the condition that a source has a row of the parent."""
    return parent.c.id.in_(select(source.c.parent_id))


FUNCTION = (
    "CREATE OR REPLACE FUNCTION has_child(id int) RETURNS bool STABLE LANGUAGE sql AS "
    "'SELECT EXISTS (SELECT FROM child WHERE parent_id = $1)'"
)
SUBQUERY = "(SELECT parent_id FROM child)"
WORDS = func.ts_stat("SELECT to_tsvector('simple', parent_id::text) FROM child").table_valued("word")
READS: dict[str, tuple[Any, list[str]]] = {
    "a table": (read_by(child), []),
    "an alias": (read_by(child.alias("x")), []),
    "a CTE": (read_by(select(child.c.parent_id).cte("x")), []),
    "a plain name": (read_by(table("child", column("parent_id"))), []),
    "a text": (text(f"id IN {SUBQUERY}"), []),
    "a literal column": (literal_column(f"(id IN {SUBQUERY})"), []),
    "a select of text": (parent.c.id.in_(text(SUBQUERY[1:-1])), []),
    "typed text": (read_by(text(SUBQUERY[1:-1]).columns(C("parent_id", Integer)).subquery("x")), []),
    "a name in a text": (parent.c.id.in_(select(column("parent_id")).select_from(text("child"))), []),
    "a view": (read_by(view), ["CREATE VIEW child_view AS SELECT parent_id FROM child"]),
    "a function": (func.has_child(parent.c.id, type_=None), [FUNCTION]),
    "a registered function": (has_child(parent.c.id), [FUNCTION]),
    "a function of SQL": (parent.c.id.cast(Text).in_(select(WORDS.c.word)), []),
    "an element of the application": (Compiled(), []),
    "a table that the child inherits from": (
        read_by(part),
        ["CREATE TABLE child_part (parent_id int)", "ALTER TABLE child INHERIT child_part"],
    ),
    "a column that the database sets to null": (parent.c.last_child > 0, []),
}


@pytest.mark.parametrize("name", READS)
async def test_rows_whose_condition_may_read_their_children_are_deleted_with_them(shop: Shop, name: str) -> None:
    condition, statements = READS[name]
    done, parents, children = await purge_parents(shop, condition, *statements)
    assert (done, parents, children) == (2, [3], [])


async def test_children_are_deleted_first_if_the_condition_cannot_read_them(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    immutable = "CREATE OR REPLACE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'"
    day = func.now() - text("interval '1 day'") < func.now()
    same = and_(day, func.coalesce(func.lower(func.f(parent.c.v)), literal_column("'x'")) < "c")
    with caplog.at_level(logging.INFO, "longhaul"):
        assert await purge_parents(shop, same & parent.c.id.in_(select(func.max(2)).union(select(1))), immutable)
        assert "children are deleted with their parents" not in caplog.text
        assert await purge_parents(shop, text("id > 0")) == (3, [], [])
        assert "reason='the condition has a text(), which may read other tables'" in caplog.text


KEEP = "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
TRIGGER = "CREATE TRIGGER keep BEFORE DELETE ON {} FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION keep()"
KEEPERS = {
    "a trigger": [KEEP, TRIGGER.format("parent")],
    "a trigger of a partition": [
        KEEP,
        "ALTER TABLE parent RENAME TO old_parent",
        "CREATE TABLE parent (LIKE old_parent, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE parent_1 PARTITION OF parent DEFAULT",
        "INSERT INTO parent SELECT * FROM old_parent",
        "DROP TABLE old_parent CASCADE",
        "ALTER TABLE child ADD FOREIGN KEY (parent_id) REFERENCES parent",
        TRIGGER.format("parent_1"),
    ],
    "a rule": ["CREATE RULE keep AS ON DELETE TO parent WHERE OLD.id = 2 DO INSTEAD NOTHING"],
}


@pytest.mark.parametrize("name", KEEPERS)
async def test_row_that_something_keeps_fails_its_batch_and_keeps_its_children(shop: Shop, name: str) -> None:
    with pytest.raises(UsageError, match="of 3 rows, 2 were deleted: a trigger, a rule or a policy of parent keeps"):
        await purge_parents(shop, true(), *KEEPERS[name])
    assert (await shop.list(parent.c.id), await shop.list(child.c.parent_id)) == ([1, 2, 3], [1, 2])


OWN = "ALTER TABLE parent DROP COLUMN last_child, ADD COLUMN up int REFERENCES parent ON DELETE CASCADE"
CASCADE = (
    "ALTER TABLE child DROP CONSTRAINT child_parent_id_fkey, "
    "ADD FOREIGN KEY (parent_id) REFERENCES parent ON DELETE CASCADE"
)
GRANDCHILD = ["CREATE TABLE hidden (id int PRIMARY KEY, child_id int REFERENCES child)"]
POLICY = ["ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("hidden", "the condition reads hidden, which may read other tables"), ("parent", "may read other tables")],
)
async def test_policy_may_read_the_children_or_keep_a_row(shop: Shop, name: str, reason: str) -> None:
    await shop.execute_all([*TABLES, *GRANDCHILD, *[f"ALTER TABLE {name} {each}" for each in POLICY]])
    await shop.execute(f"CREATE POLICY p ON {name}")
    await shop.execute("DROP ROLE IF EXISTS shopkeeper")
    target = find_target("job", parent)
    async with shop.database.connection() as connection:
        assert await find_dependence(connection, target, parent.c.id.in_(select(hidden.c.child_id)), [child]) is None
        await connection.execute(text("CREATE ROLE shopkeeper"))
        await connection.execute(text("GRANT SELECT ON parent, child, hidden TO shopkeeper"))
        await connection.execute(text("SET LOCAL ROLE shopkeeper"))
        found = await find_dependence(connection, target, parent.c.id.in_(select(hidden.c.child_id)), [child])
        await connection.rollback()
    assert reason in (found or "")


@pytest.mark.parametrize("more", [[], [CASCADE, *GRANDCHILD]], ids=["child", "grandchild"])
async def test_cascade_within_a_table_that_other_rows_prevent_is_refused(shop: Shop, more: list[str]) -> None:
    held = r"public.hidden \(child_id\)" if more else r"public.child \(parent_id\)"
    with pytest.raises(
        UnsupportedStatement, match=f"public.parent to itself is ON DELETE CASCADE.* {held} would prevent"
    ):
        await purge_parents(shop, parent.c.v == "a", OWN, "UPDATE parent SET up = id - 1 WHERE id > 1", *more)
    assert (await shop.list(parent.c.id), await shop.list(child.c.parent_id)) == ([1, 2, 3], [1, 2])


async def test_cascade_within_a_table_takes_the_children_along_if_they_cascade(shop: Shop) -> None:
    more = (OWN, CASCADE, "UPDATE parent SET up = 1 WHERE id = 2")
    assert await purge_parents(shop, parent.c.v == "a", *more) == (1, [3], [])
