"""Failures at each place of each loop: every case ends within a bound, and processes each good row once."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Column, Integer, MetaData, Numeric, Table, Text, func, make_url, select, text, update

from tests.batch.fault_scene import (
    LIMIT_SECONDS,
    ROWS,
    SIZE,
    calls,
    forty_rows,  # noqa: F401  (the fixture `run`)
)
from tests.batch.test_source import Numbers
from tests.models import Author, Book
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker import Batch, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import UnsupportedStatement
from worker.ledger import Ledger
from worker.testing.runner import JobRunner


def note(name: str) -> int:
    calls[name] = calls.get(name, 0) + 1
    return calls[name]


async def count(batch: Batch[Any]) -> None:
    keys = [int(row) for row in batch]
    await batch.session.execute(update(Author).where(Author.id.in_(keys)).values(seen=Author.seen + 1))


# --- a row is found by its key


@job
async def refuse_three(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE, on_error="quarantine", quarantine_limit=3, lock=False):
        note("bodies")
        if 3 in batch:
            if len(batch) == 1:
                async with ctx.database.transaction() as session:
                    await session.execute(text(calls_sql[0]))
            raise ValueError("row 3 is bad")
        await count(batch)
    return ctx.rows_done


calls_sql: list[str] = []


@pytest.mark.parametrize("rival", ["DELETE FROM author WHERE id = 3", "UPDATE author SET id = 99 WHERE id = 3"])
async def test_row_that_was_deleted_meanwhile_does_not_cost_its_neighbour(
    run: JobRunner, database: Database, rival: str
) -> None:
    calls_sql[:] = [rival]
    assert await run(refuse_three) == ROWS - 1
    assert await Ledger(database).quarantine.list_rows() == []
    async with database.session() as session:
        missed = list(await session.scalars(select(Author.id).where(Author.seen != 1)))
    assert missed in ([], [99])


# --- quarantine ends, whatever cannot be read, shown or parted


@job
async def refuse_repeated(ctx: JobContext) -> int:
    statement = select(Author.id, Book.title).join(Book, Book.author_id == Author.id)
    async for batch in ctx.chunks(statement, by=Author.id, size=SIZE, on_error="quarantine", quarantine_limit=5):
        note("bodies")
        if any(key == 7 for key, _ in batch):
            raise ValueError("seven")
    return ctx.rows_done


async def test_row_that_a_join_repeats_is_set_aside_as_one(run: JobRunner, database: Database) -> None:
    async with database.transaction() as session:
        session.add_all([Book(author_id=n % ROWS + 1, title=f"t{n}") for n in range(3 * ROWS)])
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await run(refuse_repeated) == 3 * (ROWS - 1)
    assert [row.key for row in await Ledger(database).quarantine.list_rows()] == [[7]]
    assert calls["bodies"] < 30


@job
async def refuse_unstorable(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Author), size=SIZE, on_error="quarantine", quarantine_limit=5):
        note("bodies")
        if any("u0000" in author.name for author in batch):
            raise ValueError("odd\x00 name \ud800")
        for author in batch:
            author.seen += 1
    return ctx.rows_done


async def test_row_with_a_text_that_jsonb_cannot_hold_is_set_aside(run: JobRunner, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(update(Author).where(Author.id == 9).values(name='{"a": "\\u0000"}'))
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await run(refuse_unstorable) == ROWS - 1
    assert [row.key for row in await Ledger(database).quarantine.list_rows()] == [[9]]


# --- every cycle passes a boundary, and is bounded


@job
async def walk_guarded(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        await count(batch)
    return ctx.rows_done


async def test_rows_that_can_be_seen_and_not_locked_are_an_error(
    run: JobRunner, database: Database, settings: Settings
) -> None:
    async with database.transaction() as session:
        for sql in (
            "DROP ROLE IF EXISTS reader",
            "CREATE ROLE reader LOGIN PASSWORD 'x'",
            "GRANT ALL ON author TO reader",
            "GRANT ALL ON SCHEMA worker, public TO reader",
            "GRANT ALL ON ALL TABLES IN SCHEMA worker TO reader",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA worker TO reader",
            "ALTER TABLE author ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY see ON author FOR SELECT USING (true)",
            "CREATE POLICY change ON author FOR UPDATE USING (id < 15)",
        ):
            await session.execute(text(sql))
    url = make_url(settings.database.url).set(username="reader", password="x").render_as_string(hide_password=False)
    limited = settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
    theirs = Database(limited, "test")
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            with pytest.raises(UnsupportedStatement, match="row-level security"):
                await JobRunner(theirs, limited)(walk_guarded)
    finally:
        await theirs.close()
        async with database.transaction() as session:
            for sql in ("ALTER TABLE author DISABLE ROW LEVEL SECURITY", "DROP POLICY see ON author"):
                await session.execute(text(sql))
            await session.execute(text("DROP POLICY change ON author"))
            await session.execute(text("DROP OWNED BY reader"))
            await session.execute(text("DROP ROLE reader"))


ODD = Table(
    "odd_keys", MetaData(), Column("key", Numeric, primary_key=True), Column("seen", Integer), Column("note", Text)
)


@job
async def walk_numbers(ctx: JobContext) -> int:
    async for batch in ctx.chunks(select(ODD.c.key), size=10, skip_locked=True):
        number = note("bodies")
        assert number < 20
        await batch.session.execute(update(ODD).where(ODD.c.key.in_(list(batch))).values(seen=ODD.c.seen + 1))
        if number == 1:
            await holders[0].execute("UPDATE odd_keys SET key = 5.00 WHERE key = 5.0")
            await holders[0].execute("COMMIT")
    return ctx.rows_done


holders: list[Any] = []


async def test_key_that_is_spelled_anew_is_found_again_once(
    run: JobRunner, database: Database, settings: Settings
) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(ODD.metadata.drop_all)
        await connection.run_sync(ODD.metadata.create_all)
        await connection.execute(text("INSERT INTO odd_keys SELECT n::numeric(10, 1), 0 FROM generate_series(1, 30) n"))
    holder = await asyncpg.connect(settings.database.url.replace("+asyncpg", ""))
    holders[:] = [holder]
    try:
        await holder.execute("BEGIN")
        await holder.execute("SELECT * FROM odd_keys WHERE key = 5 FOR UPDATE")
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await run(walk_numbers) == 30
        async with database.engine.connect() as connection:
            found = (await connection.execute(select(ODD.c.seen, func.count()).group_by(ODD.c.seen))).all()
        assert [tuple(row) for row in found] == [(1, 30)]
    finally:
        await holder.close()
        async with database.engine.begin() as connection:
            await connection.run_sync(ODD.metadata.drop_all)


# --- an exited loop is settled before another scope opens


async def test_transaction_after_a_break_does_not_wait_for_the_jobs_own_lock(
    context: MakeContext, database: Database
) -> None:
    await fill_authors(database, ROWS)
    for name in ("transaction", "session"):
        ctx = context()
        async for batch in ctx.chunks(select(Author.id), size=SIZE, name=name):
            await count(batch)
            break
        async with asyncio.timeout(LIMIT_SECONDS), getattr(ctx, name)() as session:
            await session.execute(update(Author).where(Author.id == 1).values(seen=Author.seen + 100))
        await ctx._attempt.succeed()
    async with database.session() as session:
        assert await session.scalar(select(Author.seen).where(Author.id == 1)) == 202


async def test_bulk_after_a_break_does_not_wait_for_the_jobs_own_lock(context: MakeContext, database: Database) -> None:
    await fill_authors(database, ROWS)
    ctx = context()
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        await count(batch)
        break
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await ctx.bulk.update(Author, [{"id": key, "seen": 5} for key in range(1, SIZE + 1)]) == SIZE
    await ctx._attempt.succeed()
    assert await count_seen(database) == {0: ROWS - SIZE, 5: SIZE}


async def test_transaction_inside_a_loop_leaves_the_batch_open(context: MakeContext, database: Database) -> None:
    await fill_authors(database, ROWS)
    ctx = context()
    async for batch in ctx.chunks(select(Author.id), size=SIZE):
        await count(batch)
        async with ctx.transaction() as session:
            assert await session.scalar(select(func.count()).select_from(Author)) == ROWS
    await ctx._attempt.succeed()
    assert await count_seen(database) == {1: ROWS}


# --- a stream under an ALTER TABLE


async def test_stream_that_writes_to_its_table_gives_way_to_an_alter_table(
    run: JobRunner, database: Database, settings: Settings
) -> None:
    altered: list[asyncio.Task[None]] = []

    async def alter() -> None:
        async with database.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE author ADD COLUMN added int"))

    async def waits_for_lock() -> bool:
        async with database.engine.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER%'"
            return bool(await connection.scalar(text(query)))

    @job
    async def stream(ctx: JobContext) -> int:
        async for batch in ctx.stream(select(Author.id).order_by(Author.id), size=SIZE):
            if batch.number == 2 and not altered:
                altered.append(asyncio.create_task(alter()))
                while not await waits_for_lock():
                    await asyncio.sleep(0.01)
            await count(batch)
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await run(stream) == ROWS
        await altered[0]
    assert await count_seen(database) == {1: ROWS}


# --- a table of errors: where, how, which loop


def _is_short(where: str, how: str, quarantine: bool, loop: str) -> bool:
    return how == "value" and (quarantine or loop == "chunks")  # the others wait between their attempts


@pytest.mark.parametrize(
    ("where", "how", "quarantine", "loop"),
    [
        pytest.param(*cell, marks=[] if _is_short(*cell) else pytest.mark.long)
        for cell in product(
            ["body", "commit", "read"],
            ["value", "40P01", "57014", "40001"],
            [True, False],
            ["chunks", "skip_locked", "stream", "walk"],
        )
    ],
)
async def test_each_failure_ends_within_a_bound(
    run: JobRunner, database: Database, where: str, how: str, quarantine: bool, loop: str
) -> None:
    options: dict[str, Any] = {"size": SIZE}
    if quarantine:
        options |= {"on_error": "quarantine", "quarantine_limit": 2}
    code = "22000" if how == "value" else how
    async with database.transaction() as session:
        await session.execute(
            text(
                f"CREATE OR REPLACE FUNCTION fail_at(id int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN "
                f"IF id = 14 THEN RAISE 'fails' USING ERRCODE = '{code}'; END IF; RETURN id; END $$"
            )
        )
        await session.execute(
            text(
                "CREATE OR REPLACE FUNCTION fail_late() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM fail_at(NEW.id); RETURN NULL; END $$"
            )
        )
        if where == "commit":
            await session.execute(
                text(
                    "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON author DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW EXECUTE FUNCTION fail_late()"
                )
            )
    column = func.fail_at(Author.id, type_=Integer) if where == "read" else Author.id

    @job
    async def one(ctx: JobContext) -> int:
        assert note("entries") < 60
        if loop == "walk":
            walk: Any = ctx.walk(Numbers(ROWS), **options)
        elif loop == "stream":
            walk = ctx.stream(select(Author.id, column.label("c")).order_by(Author.id), **options)
        else:
            walk = ctx.chunks(select(Author.id, column.label("c")), skip_locked=loop == "skip_locked", **options)
        async for batch in walk:
            keys = [row if loop == "walk" else row[0] for row in batch]
            await batch.session.execute(update(Author).where(Author.id.in_(keys)).values(seen=Author.seen + 1))
            if where == "body":
                for key in keys:
                    await batch.session.execute(select(func.fail_at(key)))
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        if where == "read" and loop == "walk":
            assert await run(one) == ROWS
        elif quarantine:
            assert await run(one) == ROWS - 1
            assert [row.key for row in await Ledger(database).quarantine.list_rows()] == [[14]]
        else:
            with pytest.raises(Exception, match="fails"):
                await run(one)
    assert set(await count_seen(database)) <= {0, 1}
    async with database.transaction() as session:
        await session.execute(text("DROP FUNCTION fail_late CASCADE"))
        await session.execute(text("DROP FUNCTION fail_at CASCADE"))
