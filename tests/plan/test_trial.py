"""`worker try`: batches that run for real and are rolled back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select, text, update

from tests.models import Author, Book
from tests.plan.test_plan import COUNTS, enqueue_first, no_loop, write_first
from tests.support.authors import fill_authors
from worker import Client, InvalidArguments, Job, JobContext, LonghaulError, Settings, job
from worker.batch.selection import Selection, check_expression
from worker.errors import UsageError
from worker.plan import RowChange, try_job
from worker.types import Database

calls: list[int] = []


@job
async def change_each(ctx: JobContext, by: int = 1) -> int:
    """Change, insert and delete, in every way that a batch has."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += by
        await batch.session.flush()
        await batch.bulk.insert(Book, [{"id": author.id, "author_id": author.id, "title": "t"} for author in batch])
        await batch.session.execute(delete(Book).where(Book.id >= 1_000))
        async with ctx.savepoint(batch.session) as session:
            await session.execute(update(Author).where(Author.id == batch[0].id).values(name="first"))
        calls.append(batch.first_key)
    return ctx.rows_done


@job
async def sweep_all(ctx: JobContext) -> int:
    """Change rows inside of the server."""
    return await ctx.sweep(update(Author).where(Author.id % 2 == 0).values(seen=Author.seen + 5), size=10)


@job
async def break_a_constraint(ctx: JobContext) -> None:
    """Insert books whose author does not exist; checked at the commit."""
    async for batch in ctx.chunks(select(Author.id), size=10):
        await batch.bulk.insert(Book, [{"id": 1, "author_id": 999, "title": "t"}])


@job
async def write_behind(ctx: JobContext) -> None:
    """Write outside of the batch, in the middle of the loop."""
    async for _ in ctx.chunks(select(Author.id), size=10):
        async with ctx.transaction() as session:
            await session.execute(update(Author).values(seen=9))


@job
async def read_between(ctx: JobContext) -> None:
    """Leave the loop, and walk a stream."""
    async for batch in ctx.chunks(select(Author), size=10):
        batch[0].seen = 7
        break
    async for batch in ctx.stream(select(Author.id).order_by(Author.id), size=10):
        await batch.bulk.update(Author, [{"id": id_, "seen": 8} for id_ in batch])


async def state(database: Database) -> str:
    async with database.session() as session:
        books = await session.scalar(text("SELECT count(*) || ' ' || coalesce(max(id), 0) FROM book"))
        return f"{await session.scalar(text(COUNTS))} {books}"


async def fill(database: Database) -> None:
    await fill_authors(database, 100)
    async with database.transaction() as session:
        await session.execute(insert(Book).values(id=2_000, author_id=1, title="old"))


async def test_trial_shows_each_change_and_rolls_it_back(settings: Settings, database: Database) -> None:
    await fill(database)
    before = await state(database)
    calls.clear()
    trial = await try_job(change_each, settings, {"by": 3}, batches=2, rows=4)
    assert await state(database) == before
    assert calls == [1, 5]
    assert [(batch.rows, batch.first_key, batch.last_key) for batch in trial.batches] == [(4, 1, 4), (4, 5, 8)]
    first, second = (
        sorted(batch.changes, key=lambda one: (one.table, one.action, str(one.key))) for batch in trial.batches
    )
    assert [change for change in first if change.table == "author"] == [
        RowChange("author", "UPDATE", {"id": 1}, {"name": "n1", "seen": 0}, {"name": "first", "seen": 3}),
        *(RowChange("author", "UPDATE", {"id": n}, {"seen": 0}, {"seen": 3}) for n in (2, 3, 4)),
    ]
    old = {"id": 2_000, "author_id": 1, "title": "old"}
    assert [change for change in second if change.table == "book"] == [
        RowChange("book", "DELETE", {"id": 2_000}, old, {}),
        *(RowChange("book", "INSERT", {"id": n}, {}, {"id": n, "author_id": n, "title": "t"}) for n in range(5, 9)),
    ]
    assert "real" in trial.note and trial.error == ""


async def test_trial_of_a_sweep_shows_its_ranges(settings: Settings, database: Database) -> None:
    await fill(database)
    trial = await try_job(sweep_all, settings, batches=2, rows=6)
    assert [batch.rows for batch in trial.batches] == [3, 3]
    assert [change.key["id"] for batch in trial.batches for change in batch.changes] == [2, 4, 6, 8, 10, 12]
    assert all((change.before, change.after) == ({"seen": 0}, {"seen": 5}) for change in trial.batches[0].changes)


async def test_trial_shows_triggers_and_cascades(settings: Settings, database: Database) -> None:
    await fill(database)
    async with database.transaction() as session:
        for command in (
            "ALTER TABLE book DROP CONSTRAINT book_author_id_fkey",
            "ALTER TABLE book ADD FOREIGN KEY (author_id) REFERENCES author ON DELETE CASCADE",
            "CREATE TABLE log (line text)",
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO log VALUES (OLD.name); RETURN NULL; END $$",
            "CREATE TRIGGER note AFTER DELETE ON author FOR EACH ROW EXECUTE FUNCTION note()",
        ):
            await session.execute(text(command))

    @job
    async def purge(ctx: JobContext) -> int:
        return await ctx.sweep(delete(Author).where(Author.id == 1))

    [batch] = (await try_job(purge, settings)).batches
    assert {(change.table, change.action) for change in batch.changes} == {
        ("author", "DELETE"),
        ("book", "DELETE"),
        ("log", "INSERT"),
    }


@job
async def change_in_a_savepoint(ctx: JobContext) -> None:
    """Change and delete locked rows in savepoints, one of which is rolled back."""
    async for batch in ctx.chunks(select(Author.id), size=3):
        with suppress(ValueError):
            async with batch.session.begin_nested():
                await batch.session.execute(update(Author).values(seen=9))
                raise ValueError("rolled back")
        async with batch.session.begin_nested():
            await batch.session.execute(update(Author).where(Author.id == batch[0]).values(seen=1))
            await batch.session.execute(delete(Author).where(Author.id == batch[1]))
            await batch.session.execute(update(Author).where(Author.id == 100).values(seen=2))


@job
async def change_without_a_lock(ctx: JobContext) -> None:
    """Change rows that the walk does not lock."""
    async for batch in ctx.chunks(select(Author.id), size=3, lock=False):
        await batch.gather(_wait)
        await batch.bulk.update(Author, [{"id": id_, "seen": 1} for id_ in batch])


async def _wait(_: int, __: str) -> None:
    await asyncio.sleep(0)


@job
async def sweep_two_tables(ctx: JobContext) -> None:
    """Change other tables in the loops."""
    await ctx.sweep(update(Author).where(Author.id > 98).values(seen=1))
    await ctx.sweep(update(Book).values(title="swept"))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            change_in_a_savepoint,
            [[("DELETE", 2), ("UPDATE", 1), ("UPDATE", 100)], [("DELETE", 5), ("UPDATE", 4), ("UPDATE", 100)]],
        ),
        (change_without_a_lock, [[("UPDATE", n) for n in (1, 2, 3)], [("UPDATE", n) for n in (4, 5, 6)]]),
        (sweep_two_tables, [[("UPDATE", 99), ("UPDATE", 100)], [("UPDATE", 2_000)]]),
    ],
    ids=lambda one: one.name if isinstance(one, Job) else "",
)
async def test_each_batch_counts_and_shows_its_own_changes(
    settings: Settings, database: Database, function: Any, expected: Any
) -> None:
    await fill(database)
    trial = await try_job(function, settings, batches=2, rows=None)
    assert trial.error == ""
    assert [sorted((one.action, one.key["id"]) for one in batch.changes) for batch in trial.batches] == expected
    is_rolled_back = function is change_in_a_savepoint  # its 100 or 99 changes count as well
    assert [
        sum(batch.counts.values()) > 90 if is_rolled_back else sum(batch.counts.values()) for batch in trial.batches
    ] == [is_rolled_back or len(batch) for batch in expected]
    assert [batch.unshown for batch in trial.batches] == [[], []]


async def test_table_that_cannot_be_read_outside_of_the_batch_is_named(settings: Settings, database: Database) -> None:
    await fill(database)

    @job
    async def create(ctx: JobContext) -> None:
        async for batch in ctx.chunks(select(Author), size=3):
            batch[0].seen = 1
            await batch.session.execute(text("CREATE TABLE of_the_batch (id int)"))
            await batch.session.execute(text("INSERT INTO of_the_batch VALUES (1)"))

    [batch] = (await try_job(create, settings, batches=1)).batches
    assert (batch.unshown, batch.counts) == (["of_the_batch"], {"author": 1, "of_the_batch": 1})
    assert [change.key for change in batch.changes] == [{"id": 1}]


async def test_batch_that_commits_is_an_error(settings: Settings, database: Database) -> None:
    await fill(database)

    @job
    async def commit(ctx: JobContext) -> None:
        async for batch in ctx.chunks(select(Author), size=3):
            await batch.session.execute(text("COMMIT"))

    with pytest.raises(LonghaulError, match="has ended its transaction"):
        await try_job(commit, settings)


async def test_columns_that_a_primary_key_includes_are_no_part_of_it(settings: Settings, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("DROP TABLE IF EXISTS wide"))
        await session.execute(text("CREATE TABLE wide (id int, v int, PRIMARY KEY (id) INCLUDE (v))"))
        await session.execute(text("INSERT INTO wide VALUES (1, 5)"))
    wide = Table("wide", MetaData(), Column("id", Integer, primary_key=True), Column("v", Integer))

    @job
    async def raise_v(ctx: JobContext) -> int:
        return await ctx.sweep(update(wide).values(v=6))

    [batch] = (await try_job(raise_v, settings)).batches
    assert batch.changes == [RowChange("wide", "UPDATE", {"id": 1}, {"v": 5}, {"v": 6})]


@pytest.mark.parametrize(
    ("selection", "key", "expected"),
    [
        (Selection("id < 3"), None, [1, 2]),
        (Selection("name LIKE 'n9_' AND region = 1 OR id = 3"), None, [3, 92, 99]),
        (Selection("(id = 4)"), None, [4]),
        (Selection(None, [98]), None, [98, 99, 100]),
        (Selection("id <> 99", [98]), None, [98, 100]),
        (None, [77], [77]),
        (Selection("id < 3"), [77], []),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [change_each, sweep_all], ids=lambda one: one.name)
async def test_trial_of_a_part(
    settings: Settings,
    database: Database,
    function: Any,
    selection: Selection | None,
    key: list[Any] | None,
    expected: list[int],
) -> None:
    await fill(database)
    trial = await try_job(function, settings, batches=50, key=key, selection=selection)
    found = [change.key["id"] for batch in trial.batches for change in batch.changes if change.table == "author"]
    assert sorted(found) == [n for n in expected if function is change_each or n % 2 == 0]


@pytest.mark.parametrize(
    "subset",
    [
        "",
        " ",
        "true; DROP TABLE author",
        "id < 5) OR (true",
        "id < 5 -- all",
        "id < 5 /* all",
        "id = $1",
        "id = $$x$$::int",
        "(id < 5",
        "name = 'x",
        'name = "x',
        r"name = 'x\' OR true --'",
        r"name = E'x\') OR (true",
        "id < 5\x00",
        "x" * 10_001,
    ],
)
def test_subset_that_is_not_one_expression_is_refused(subset: str) -> None:
    with pytest.raises(InvalidArguments, match="--subset"):
        check_expression(subset)


@pytest.mark.parametrize(
    "subset",
    ["name = ';--'", "name = 'it''s (' ", "author.\"name\" ~ '^(a|b)'", "name = E'\\'('", "id IN (1, 2)", "a - -1 = 2"],
)
def test_subset_that_is_one_expression_is_accepted(subset: str) -> None:
    assert check_expression(subset) == subset


@pytest.mark.parametrize("subset", ["nonsense = 1", "id", "count(*) > 1", "id IN (DELETE FROM author RETURNING id)"])
async def test_subset_that_postgresql_rejects_is_an_error_and_changes_nothing(
    settings: Settings, database: Database, subset: str
) -> None:
    await fill(database)
    before = await state(database)
    with pytest.raises(LonghaulError):
        await try_job(change_each, settings, selection=Selection(subset))
    assert await state(database) == before


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (write_first, "writes outside of its loops"),
        (write_behind, "writes outside of its loops"),
        (enqueue_first, "sends nothing to the queue"),
        (no_loop, "no durable loop"),
        (break_a_constraint, "book_author_id_fkey"),
    ],
    ids=lambda one: one.name if hasattr(one, "name") else None,
)
async def test_trial_refuses_what_it_could_not_roll_back_and_shows_errors(
    settings: Settings, database: Database, client: Client, function: Any, reason: str
) -> None:
    await fill_authors(database, 5)
    before = await state(database)
    with pytest.raises((LonghaulError, UsageError), match=reason):
        await try_job(function, settings)
    assert await state(database) == before
    assert await client.redis.dbsize() == 0


async def test_trial_goes_on_behind_a_loop_that_was_left(settings: Settings, database: Database) -> None:
    await fill(database)
    trial = await try_job(read_between, settings, batches=2, rows=3)
    assert [(batch.kind, batch.rows, len(batch.changes)) for batch in trial.batches] == [
        ("chunks", 3, 1),
        ("stream", 3, 3),
    ]
