"""The pace of a step persists over attempts, adapts to failed batches, and is limited in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    delete,
    func,
    select,
    text,
    update,
)

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext, Settings, job
from worker.attempt.control import NoControl
from worker.batch import Progress
from worker.batch.sizing import AdaptiveSizer
from worker.db.engine import Database
from worker.settings import BatchSettings
from worker.testing.runner import JobRunner

RULES = BatchSettings(target_seconds=0.5, first_size=1000, min_size=100, max_size=20_000, max_bytes=10_000_000)

META = MetaData()
HEAVY = Table(
    "heavy", META, Column("id", BigInteger, primary_key=True), Column("body", Text), Column("raw", LargeBinary)
)
PARENT = Table("pace_parent", META, Column("id", BigInteger, primary_key=True), Column("at", Integer, nullable=False))
CHILD = Table(
    "pace_child", META, Column("id", BigInteger, primary_key=True), Column("parent_id", ForeignKey(PARENT.c.id))
)


@pytest.fixture
async def tables(database: Database) -> Any:
    """Empty tables of this module."""
    async with database.engine.begin() as connection:
        await connection.run_sync(META.drop_all)
        await connection.run_sync(META.create_all)
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(META.drop_all)


def with_batch(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update={"batch": settings.batch.model_copy(update=values)})


def test_failed_batch_that_was_slow_teaches_the_size_at_once() -> None:
    sizer = AdaptiveSizer(RULES)
    sizer.note_failure(1_000, 5.0)  # 5 ms a row, at least
    assert sizer.size == 100
    quick = AdaptiveSizer(RULES)
    quick.note_failure(1_000, 0.1)  # it did not fail because of its time
    assert quick.size == 1_000


def test_size_is_bounded_by_the_weight_of_rows_below_the_smallest_size() -> None:
    sizer = AdaptiveSizer(RULES)
    sizer.load({"row_bytes": 1_000_000})
    assert sizer.size == 10
    for _ in range(10):
        sizer.note(sizer.size, 0.001, 1_000_000)
    assert sizer.size == 10
    sizer.note(10, 0.001, 100_000_000)
    assert sizer.size == 1


@pytest.mark.parametrize("junk", [{}, {"size": "x"}, {"size": -1, "row_seconds": 1e400}, {"size": None}, {"size": [1]}])
def test_pace_that_is_none_is_ignored(junk: dict[str, Any]) -> None:
    sizer = AdaptiveSizer(RULES)
    sizer.load(junk)
    assert sizer.size == 1_000


def test_pace_survives_the_ledger() -> None:
    sizer = AdaptiveSizer(RULES)
    for _ in range(20):
        sizer.note(sizer.size, sizer.size * 1e-3, 100)
    again = AdaptiveSizer(RULES)
    again.load(sizer.dump())
    assert again.size == sizer.size
    assert again.dump() == sizer.dump()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kind", ["chunks", "columns", "stream"])
async def test_first_batch_is_bounded_in_bytes(database: Database, settings: Settings, kind: str) -> None:
    async with database.transaction() as session:
        for column in ("body", "raw"):
            await session.execute(text(f"ALTER TABLE heavy ALTER {column} SET STORAGE EXTERNAL"))
        values = {"body": func.repeat("x", 100_000), "raw": func.convert_to(func.repeat("y", 100_000), "UTF8")}
        numbers = func.generate_series(1, 60).column_valued("n")
        rows = select(numbers, values["body"], values["raw"])
        await session.execute(HEAVY.insert().from_select(["id", "body", "raw"], rows))
    limited = with_batch(settings, max_bytes=1_000_000)
    ctx = JobRunner(database, limited).context()
    if kind == "stream":
        walk: Any = ctx.stream(select(HEAVY).order_by(HEAVY.c.id))
    else:
        walk = ctx.chunks(select(HEAVY))
    sizes = [len(batch) async for batch in walk]
    assert sum(sizes) == 60
    assert max(sizes) <= 6
    await ctx._attempt.close()


async def test_lines_are_bounded_in_bytes(database: Database, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(["x" * 1_000] * 100))
    ctx = JobRunner(database, with_batch(settings, max_bytes=10_000)).context()
    sizes = [len(batch) async for batch in ctx.lines(path, size=50)]
    assert sum(sizes) == 100
    assert max(sizes) <= 11
    await ctx._attempt.close()


async def test_next_attempt_begins_with_the_pace_of_the_last_one(database: Database, settings: Settings) -> None:
    await fill_authors(database, 400)
    sizes: list[int] = []

    @job
    async def walk(ctx: JobContext) -> int:
        async for batch in ctx.chunks(select(Author)):
            sizes.append(len(batch))
            if len(sizes) == 3:
                raise RuntimeError("dies")
            for author in batch:
                author.seen += 1
        return ctx.rows_done

    quick = with_batch(settings, first_size=10, min_size=1, max_size=80, target_seconds=1_000.0)
    runner = JobRunner(database, quick)
    with pytest.raises(RuntimeError):
        await runner.attempt(walk, "r")
    assert sizes == [10, 20, 40]
    assert await runner.attempt(walk, "r") == 400
    assert sizes[3:5] == [20, 20]  # half of the batch that failed, and not 10 rows again
    assert await count_seen(database) == {1: 400}


async def test_batch_that_fails_at_each_attempt_is_halved_with_a_fixed_size_too(
    database: Database, settings: Settings
) -> None:
    await fill_authors(database, 40)
    sizes: list[int] = []

    @job
    async def walk(ctx: JobContext) -> int:
        async for batch in ctx.chunks(select(Author.id), size=16):
            sizes.append(len(batch))
            if 1 in batch:
                raise RuntimeError("dies")
        return ctx.rows_done

    runner = JobRunner(database, settings)
    for _ in range(5):
        with pytest.raises(RuntimeError):
            await runner.attempt(walk, "r")
    assert sizes == [16, 8, 4, 2, 1]


async def test_sweep_learns_from_statement_timeouts(database: Database, settings: Settings) -> None:
    await fill_authors(database, 300)
    async with database.transaction() as session:
        await session.execute(
            text(
                "CREATE OR REPLACE FUNCTION slow(n int) RETURNS int LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(0.005); RETURN n + 1; END $$"
            )
        )
    limits = settings.database.model_copy(update={"statement_timeout_seconds": 0.8})
    rules = settings.batch.model_copy(update={"target_seconds": 0.1, "first_size": 300, "min_size": 5})
    hurried = settings.model_copy(update={"database": limits, "batch": rules})
    behind = Database(hurried, "test")
    failures: list[str] = []

    @job
    async def sweep(ctx: JobContext) -> int:
        failures.append("entered")
        return await ctx.sweep(update(Author).values(seen=func.slow(Author.seen)))

    assert await JobRunner(behind, hurried)(sweep) == 300
    await behind.close()
    assert len(failures) <= 3
    assert await count_seen(database) == {1: 300}


class Shares(NoControl):
    """Keeps the shares that are reported."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.shares: list[float] = []
        self._left = stop_after

    @property
    def draining(self) -> bool:
        return self._left <= 0

    def report(self, progress: Progress, rows: int) -> None:
        self._left -= 1
        if progress.share is not None:
            self.shares.append(progress.share)


@pytest.mark.parametrize("kind", ["delete", "chunks", "lines"])
async def test_percent_never_goes_back(context: MakeContext, database: Database, tmp_path: Path, kind: str) -> None:
    await fill_authors(database, 200)
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(["x"] * 200))
    shares: list[float] = []
    for stop_after in (3, 3, 3, 10**9):
        control = Shares(stop_after)
        ctx = context("run", control=control)
        try:
            if kind == "delete":
                await ctx.sweep(delete(Author), size=10)
            else:
                walk: Any = ctx.chunks(select(Author.id), size=10) if kind == "chunks" else ctx.lines(path, size=10)
                async for batch in walk:
                    if kind == "chunks":
                        await batch.bulk.delete(Author, list(batch))
            await ctx._attempt.succeed()
        except BaseException as error:
            if type(error).__name__ != "AttemptReleased":
                raise
            await ctx._attempt.fail()
            assert ctx._attempt.ledger_run is not None
            await ctx._attempt.ledger_run.release("waiting", failed=False)
        await ctx._attempt.close()
        shares += control.shares
    assert shares == sorted(shares)
    assert len(shares) == 20
    assert shares[-1] == 1.0
    assert 0.3 < shares[9] < 0.7


@pytest.mark.usefixtures("tables")
async def test_order_that_no_index_serves_is_told(context: MakeContext, caplog: pytest.LogCaptureFixture) -> None:
    ctx = context()
    with caplog.at_level("WARNING", "longhaul"):
        async for _ in ctx.chunks(select(PARENT), by=[PARENT.c.at, PARENT.c.id], allow_sort=True, name="a"):
            pass
        assert "CREATE INDEX CONCURRENTLY ON pace_parent (at, id)" in caplog.text
        caplog.clear()
        async for _ in ctx.chunks(select(PARENT), name="b"):
            pass
        assert caplog.text == ""


@pytest.mark.usefixtures("tables")
async def test_delete_of_parents_with_an_unindexed_child_is_told(
    context: MakeContext, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "longhaul"):
        await context().sweep(delete(PARENT))
        assert "CREATE INDEX CONCURRENTLY ON pace_child (parent_id)" in caplog.text
        caplog.clear()
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE INDEX ON pace_child (parent_id)"))
        await context().sweep(delete(PARENT))
        assert caplog.text == ""
