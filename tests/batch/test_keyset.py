"""Walks by keys of every type that a cursor can hold, resumed in the middle; other keys are rejected."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import (
    CHAR,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import aliased

from tests.models import Author, Book, authors
from tests.support.contexts import MakeContext
from worker import JobContext, LonghaulError
from worker.attempt.control import NoControl
from worker.batch.keyset import Keyset
from worker.db.engine import Database
from worker.errors import UnsupportedStatement

COUNT = 60
BEGIN = dt.datetime(2026, 3, 29, 0, 59, 59, 999_990)
ODD = ["", " ", "a", "A", "ä", "Z", "ß", "'", '"', "\\", "%s", ":x", "{", "日本", "a b", "a\tb", "\U0001f600"]

KEYS: dict[str, tuple[Any, list[Any]]] = {
    "smallint": (SmallInteger, list(range(-30, 30))),
    "integer": (Integer, [n * 71_582_788 - 2**31 for n in range(COUNT)]),
    "bigint": (BigInteger, [n * 10**17 - 2**62 for n in range(COUNT)]),
    "text": (Text, [*ODD, *(f"{n:02}" for n in range(COUNT - len(ODD)))]),
    "varchar": (String(20), [*ODD, *(f"{n}" for n in range(COUNT - len(ODD)))]),
    "uuid": (Uuid, [uuid.UUID(int=n * 2**121 + n) for n in range(COUNT)]),
    "date": (Date, [dt.date(1, 1, 1) + dt.timedelta(days=n * 50_000) for n in range(COUNT)]),
    "timestamp": (DateTime, [BEGIN + dt.timedelta(microseconds=n) for n in range(COUNT)]),
    "timestamptz": (
        DateTime(timezone=True),
        [BEGIN.replace(tzinfo=dt.UTC) + dt.timedelta(microseconds=n) for n in range(COUNT)],
    ),
    "numeric": (Numeric(38, 20), [Decimal(n - 30) / Decimal(10**19) for n in range(COUNT)]),
    "numeric of any scale": (Numeric, [Decimal(10) ** (n - 30) for n in range(COUNT)]),
}


@pytest_asyncio.fixture(params=KEYS)
async def table(request: pytest.FixtureRequest, database: Database) -> Table:
    """A table whose key is of that type, in a schema and with names that have to be quoted."""
    type_, values = KEYS[request.param]
    key, done = Column("The Key", type_, key="key", primary_key=True), Column("done", Integer, nullable=False)
    found = Table("Keyed Rows", MetaData(schema="Odd Schema"), key, done)
    async with database.engine.begin() as connection:
        await connection.execute(text('CREATE SCHEMA "Odd Schema"'))
        await connection.run_sync(found.metadata.create_all)
        await connection.execute(insert(found), [{"key": value, "done": 0} for value in values])
    return found


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_every_row_is_done_once_over_a_restart(
    context: MakeContext, database: Database, table: Table, direction: str
) -> None:
    by = table.c.key.desc() if direction == "desc" else table.c.key
    walked = []
    for _ in range(2):
        ctx = context("run")
        async for batch in ctx.chunks(select(table.c.key, table.c.done), by=by, size=7):
            if batch.number == 4 and len(walked) == 21:
                walked.append(None)  # the first attempt ends here, in its fourth batch
                break_off = ctx
                await break_off._attempt.fail()
                break
            keys = [key for key, _ in batch]
            assert (batch.first_key, batch.last_key) == (keys[0], keys[-1])
            walked += keys
            rows = [{"key": key, "done": done + 1} for key, done in batch]
            assert await batch.bulk.update(table, rows) == len(rows)
        else:
            await ctx._attempt.succeed()
        await ctx._attempt.close()
    walked.remove(None)
    async with database.session() as session:
        ordered = (await session.scalars(select(table.c.key).order_by(by))).all()
        assert walked == list(ordered)
        assert (await session.scalars(select(table.c.done).distinct())).all() == [1]


async def test_sweeps_and_streams_walk_by_it_too(context: MakeContext, database: Database, table: Table) -> None:
    ctx = context()
    assert await ctx.sweep(update(table).values(done=table.c.done + 1), size=7) == COUNT
    seen = []
    async for partition in ctx.stream(select(table.c.key, table.c.done).order_by(table.c.key), size=7):
        seen += partition
    assert len({key for key, _ in seen}) == len(seen) == COUNT
    assert {done for _, done in seen} == {1}
    assert await ctx.sweep(delete(table), by=table.c.key.desc(), size=7) == COUNT


async def odd_table(database: Database, *columns: Column[Any], ddl: str, rows: str) -> Table:
    """Return a table whose model differs from the database."""
    found = Table("odd", MetaData(), *columns)
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS odd"))
        await connection.execute(text(f"CREATE TABLE odd ({ddl}, done integer NOT NULL DEFAULT 0)"))
        await connection.execute(text(f"INSERT INTO odd {rows}"))
    return found


def done() -> Column[Any]:
    return Column("done", Integer)


@pytest.mark.parametrize("by_id", ["asc", "desc"])
async def test_dates_that_are_infinite_to_the_driver_end_no_walk_early(
    context: MakeContext, database: Database, by_id: str
) -> None:
    """asyncpg sends date.max as infinity, and a sentinel of 9999-12-31 is less than that."""
    table = await odd_table(
        database,
        Column("until", Date, primary_key=True),
        Column("id", Integer, primary_key=True),
        done(),
        ddl="until date, id int, PRIMARY KEY (until, id)",
        rows="SELECT d, n FROM unnest(ARRAY['-infinity', '0001-01-01', '2026-01-01', '9999-12-31', 'infinity']::date[])"
        " AS d, generate_series(1, 4) AS n",
    )
    by = [table.c.until, table.c.id] if by_id == "asc" else [table.c.until.desc(), table.c.id]
    await _touch_all(context, database, table, by)


async def test_timestamps_of_the_last_moment_are_walked(context: MakeContext, database: Database) -> None:
    table = await odd_table(
        database,
        Column("at", DateTime(timezone=True), primary_key=True),
        Column("id", Integer, primary_key=True),
        done(),
        ddl="at timestamptz, id int, PRIMARY KEY (at, id)",
        rows="SELECT t, n FROM unnest(ARRAY['-infinity', '9999-12-31 23:59:59.999999+00', 'infinity']::timestamptz[])"
        " AS t, generate_series(1, 5) AS n",
    )
    await _touch_all(context, database, table, [table.c.at, table.c.id])


async def test_numbers_that_the_model_rounds_are_walked(context: MakeContext, database: Database) -> None:
    table = await odd_table(
        database,
        Column("key", Numeric(10, 2), primary_key=True),
        done(),
        ddl="key numeric PRIMARY KEY",
        rows="SELECT n / 1000.0 FROM generate_series(1, 20) AS n",
    )
    await _touch_all(context, database, table, [table.c.key])


async def test_numbers_that_come_as_floats_are_walked(context: MakeContext, database: Database) -> None:
    table = await odd_table(
        database,
        Column("key", Numeric(30, 20, asdecimal=False), primary_key=True),
        done(),
        ddl="key numeric(30, 20) PRIMARY KEY",
        rows="SELECT 1 + n * 1e-19 FROM generate_series(1, 20) AS n",
    )
    await _touch_all(context, database, table, [table.c.key], sweep_only=True)


async def test_a_timestamp_without_a_zone_that_the_model_has_one_for_is_walked(
    context: MakeContext, database: Database
) -> None:
    table = await odd_table(
        database,
        Column("at", DateTime(timezone=True), primary_key=True),
        done(),
        ddl="at timestamp PRIMARY KEY",
        rows="SELECT timestamp '2026-10-25 00:00' + n * interval '10 minutes' FROM generate_series(1, 20) AS n",
    )
    for zone in ("America/New_York", "Asia/Tokyo"):
        async with database.engine.connect() as connection:
            await connection.execute(text(f"ALTER DATABASE postgres SET timezone = '{zone}'"))
            await connection.commit()
        await database.engine.dispose()
        try:
            ctx = context()
            assert await ctx.sweep(update(table).values(done=table.c.done + 1), size=3) == 20
        finally:
            async with database.engine.connect() as connection:
                await connection.execute(text("ALTER DATABASE postgres RESET timezone"))
                await connection.commit()
            await database.engine.dispose()


async def _touch_all(
    context: MakeContext, database: Database, table: Table, by: list[Any], *, sweep_only: bool = False
) -> None:
    """Touch each row by a walk of small batches, and count."""
    async with database.session() as session:
        count = int(await session.scalar(select(func.count()).select_from(table)) or 0)
    ctx = context()
    assert await ctx.sweep(update(table).values(done=table.c.done + 1), by=by, size=3, allow_sort=True) == count
    walked = 0
    if not sweep_only:
        async for batch in ctx.chunks(select(*table.primary_key, table.c.done), by=by, size=3, allow_sort=True):
            walked += len(batch)
        assert walked == count
    async with database.session() as session:
        assert (await session.scalars(select(table.c.done).distinct())).all() == [1]


async def test_a_key_of_another_table_is_refused(context: MakeContext) -> None:
    for statement, by in ((select(Author), Book.id), (select(aliased(Author)), Author.id)):
        with pytest.raises(UnsupportedStatement, match="does not select from under that name"):
            context().chunks(statement, by=by)


async def test_a_walk_whose_order_goes_in_circles_ends_with_an_error(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    with pytest.raises(LonghaulError, match="would never end"):
        async for _ in ctx.chunks(select(Author), size=10):
            monkeypatch.setattr(Keyset, "encode", lambda self, key: [10])
    await ctx._attempt.fail()


@pytest.mark.parametrize("type_", [Boolean, CHAR(4)])
async def test_a_type_whose_order_a_cursor_cannot_hold_is_refused(context: MakeContext, type_: Any) -> None:
    table = Table("odd", MetaData(), Column("key", type_, primary_key=True))
    with pytest.raises(UnsupportedStatement, match="a cursor cannot hold"):
        context().chunks(select(table.c.key))


@pytest_asyncio.fixture
async def own_table(database: Database) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Makes a table `odd` by statements of the test's own; it is gone afterwards."""

    async def make(*statements: str) -> None:
        async with database.engine.begin() as connection:
            for statement in ("DROP TABLE IF EXISTS odd", *statements):
                await connection.execute(text(statement))

    yield make
    await make()


async def test_keys_that_are_no_number_or_infinite_are_walked(context: MakeContext, own_table: Any) -> None:
    await own_table(
        "CREATE TABLE odd (n numeric PRIMARY KEY)",
        "INSERT INTO odd VALUES ('-Infinity'), (-1), (0), (1e300), ('Infinity'), ('NaN')",
    )
    table = Table("odd", MetaData(), Column("n", Numeric, primary_key=True))
    found: list[str] = []
    async for batch in context().chunks(select(func.cast(table.c.n, Text)), by=table.c.n, size=1):
        found += batch
    assert [value[:5] for value in found] == ["-Infi", "-1", "0", "10000", "Infin", "NaN"]
    await own_table(
        "CREATE TABLE odd (n timestamptz PRIMARY KEY)",
        "INSERT INTO odd VALUES ('-infinity'), ('2026-01-01'), ('infinity')",
    )
    moments = Table("odd", MetaData(), Column("n", DateTime(timezone=True), primary_key=True))
    assert await context().sweep(delete(moments), size=1) == 3


async def test_an_index_of_another_collation_orders_no_walk(context: MakeContext, own_table: Any) -> None:
    table = Table("odd", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text, nullable=False))
    await own_table(
        'CREATE TABLE odd (id int PRIMARY KEY, name text COLLATE "POSIX" NOT NULL)',
        'CREATE UNIQUE INDEX ON odd (name COLLATE "C")',
        "INSERT INTO odd VALUES (1, 'a'), (2, 'B')",
    )
    with pytest.raises(UnsupportedStatement, match="another collation than its column"):
        async for _ in context().chunks(select(table), by=table.c.name):
            pytest.fail("a batch was read")
    await own_table(
        'CREATE TABLE odd (id int PRIMARY KEY, name text COLLATE "POSIX" NOT NULL UNIQUE)',
        'CREATE UNIQUE INDEX ON odd (name COLLATE "C")',
        "INSERT INTO odd VALUES (1, 'a'), (2, 'B')",
    )
    names: list[str] = []
    async for batch in context().chunks(select(table.c.name), by=table.c.name, size=1):
        names += batch
    assert names == ["B", "a"]


@pytest.mark.parametrize("kind", ["chunks", "sweep", "stream"])
async def test_a_column_that_is_dropped_in_the_middle_ends_the_try_with_its_name(
    context: MakeContext, own_table: Any, database: Database, kind: str
) -> None:
    await own_table(
        "CREATE TABLE odd (id int PRIMARY KEY, n int)", "INSERT INTO odd SELECT g, 0 FROM generate_series(1, 30) AS g"
    )
    table = Table("odd", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))
    first = context("run")

    async def walk(ctx: JobContext) -> int:
        if kind == "sweep":
            return await ctx.sweep(update(table).values(n=table.c.n + 1), size=10)
        loop: Any = (
            ctx.chunks(select(table.c.id, table.c.n), size=10)
            if kind == "chunks"
            else ctx.stream(select(table.c.id, table.c.n).order_by(table.c.id), size=10)
        )
        async for batch in loop:
            await batch.bulk.update(table, {"id": [row.id for row in batch], "n": [1] * len(batch)})
        return ctx.rows_done

    class DropsAfterOne(NoControl):
        def report(self, progress: Any, rows: int) -> None:
            dropping.append(progress.batches)

        async def order(self, run_id: str, job: str) -> None:
            if dropping == [1]:
                async with database.engine.begin() as connection:
                    await connection.execute(text("SET LOCAL lock_timeout = '1s'"))
                    await connection.execute(text("ALTER TABLE odd DROP COLUMN n"))

    dropping: list[int] = []
    if kind != "stream":  # whose reader keeps the table as it was: DROP COLUMN waits for it
        first = context("run", control=DropsAfterOne())
        with pytest.raises(
            (asyncpg.UndefinedColumnError, ProgrammingError, asyncpg.InvalidCachedStatementError)
        ) as told:
            await walk(first)
        await first._attempt.fail()
        await first._attempt.close()
        assert "n" in str(told.value)
        assert (await first._attempt.durable_run()).rows == 10
    async with database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE odd ADD COLUMN IF NOT EXISTS n int NOT NULL DEFAULT 0"))
    await walk(context("run"))
    async with database.engine.connect() as connection:
        rows = (await connection.execute(text("SELECT n, count(*) FROM odd GROUP BY n ORDER BY n"))).all()
    assert [tuple(row) for row in rows] == ([(1, 30)] if kind == "stream" else [(0, 10), (1, 20)])


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("CREATE VIEW shown AS SELECT id, seen FROM author", "a view"),
        ("CREATE MATERIALIZED VIEW shown AS SELECT id, seen FROM author", "a materialized view"),
    ],
)
async def test_view_is_refused_with_the_way_to_walk_its_table(
    context: MakeContext, database: Database, sql: str, kind: str
) -> None:
    shown = Table("shown", MetaData(), Column("id", Integer, primary_key=True), Column("seen", Integer))
    async with database.transaction() as session:
        await session.execute(text(sql))
    ctx = context()
    walks: list[Callable[[], Awaitable[Any]]] = [
        lambda: read_all(ctx.chunks(select(shown.c.id))),
        lambda: read_all(ctx.chunks(select(shown.c.id), by=shown.c.id, skip_locked=True, name="other")),
        lambda: ctx.sweep(update(shown).values(seen=1)),
    ]
    for walk in walks:
        with pytest.raises(
            UnsupportedStatement, match=f"shown is {kind}, .*; walk the table that it reads, .*start_over"
        ):
            await walk()
        ctx = context()
    with pytest.raises(UnsupportedStatement, match=f"shown is {kind}, .*set on_restart='start_over'"):
        await read_all(ctx.stream(select(shown.c.id).order_by(shown.c.id)))
    ctx = context()
    await read_all(ctx.stream(select(shown.c.id).order_by(shown.c.id), on_restart="start_over"))


async def read_all(walk: Any) -> None:
    async for _ in walk:
        pass
