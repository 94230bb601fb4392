"""The progress of a walk: by the position of its key, by counted rows, and by the planner's estimate."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Select, Table, Text, Uuid, delete, insert, select, text, update

from tests.models import Author, authors
from tests.support.contexts import MakeContext
from worker.attempt.context import JobContext
from worker.attempt.control import NoControl
from worker.batch import Progress
from worker.db.engine import Database

pytestmark = pytest.mark.asyncio


class Heard(NoControl):
    """A control that records its reports."""

    def __init__(self) -> None:
        self.reports: list[Progress] = []

    def report(self, progress: Progress, rows: int) -> None:
        self.reports.append(progress)


@pytest.fixture(autouse=True)
async def rows(context: MakeContext) -> None:
    """A hundred rows to walk."""
    await context().bulk.insert(Author, authors(100))


def listening(context: MakeContext, run_id: str | None = None) -> tuple[JobContext, list[Progress]]:
    ctx, heard = context(run_id) if run_id else context(), Heard()
    ctx._attempt.control = heard
    return ctx, heard.reports


async def walk_over_restart(
    context: MakeContext, what: Select[Any], *, by: Any, size: int, breaks_at: int
) -> tuple[list[Progress], list[Progress]]:
    """Walk in two attempts; the first one ends in a batch. Return the reports of each."""
    first, reports = listening(context, "run")
    async for batch in first.chunks(what, by=by, size=size):
        if batch.number == breaks_at:
            await first._attempt.close()
            break
    again, later = listening(context, "run")
    async for _ in again.chunks(what, by=by, size=size):
        pass
    return reports, later


async def test_the_keys_position_tells_without_counting(context: MakeContext) -> None:
    ctx, reports = listening(context)
    # The planner has no statistics of a table that was never analysed.
    async for _ in ctx.chunks(select(Author.id).where(Author.id > 0), size=25):
        pass
    assert [round(report.share or 0, 2) for report in reports] == [0.24, 0.49, 0.75, 1.0]


async def test_it_does_after_a_restart_as_well_and_downwards(context: MakeContext) -> None:
    _, reports = await walk_over_restart(context, select(Author), by=Author.id.desc(), size=25, breaks_at=3)
    assert [round(report.share or 0, 2) for report in reports] == [0.75, 1.0]


async def test_a_sweep_and_keys_of_uuids_have_a_position(context: MakeContext, database: Database) -> None:
    metadata = MetaData()
    table = Table("uuids", metadata, Column("id", Uuid, primary_key=True), Column("note", Text))
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(table), [{"id": uuid.UUID(int=n << 120)} for n in range(100)])
    try:
        ctx, reports = listening(context)
        await ctx.sweep(update(table).values(note="x"), size=25)
        assert [round(report.share or 0, 2) for report in reports] == [0.24, 0.49, 0.75, 1.0]
    finally:
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)


async def test_rows_are_counted_where_that_is_asked_for(context: MakeContext) -> None:
    even = select(Author.id).where(Author.id % 2 == 0)
    ctx, reports = listening(context)
    async for _ in ctx.chunks(even, size=20, count="exact"):
        pass
    assert [(report.total, report.share) for report in reports] == [(50, 0.4), (50, 0.8), (50, 1.0)]
    assert [report.share_by for report in reports] == ["count", "count", None]
    ctx, reports = listening(context)
    async for _ in ctx.stream(even.order_by(Author.id), size=20, count="exact"):
        pass
    assert [(report.total, report.share) for report in reports] == [(50, 0.4), (50, 0.8), (50, 1.0)]
    assert [report.share_by for report in reports] == ["count", "count", None]
    ctx, reports = listening(context)
    await ctx.sweep(delete(Author).where(Author.id % 2 == 0), size=50, count="exact")
    assert [(report.total, report.share) for report in reports] == [(50, 0.5), (50, 1.0)]


async def test_percent_is_an_estimate_if_key_and_statistics_differ_by_far(
    context: MakeContext, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
        await session.execute(update(Author).where(Author.id > 50).values(id=Author.id + 1_000_000))
    ctx, reports = listening(context)
    with caplog.at_level("INFO", logger="longhaul.batch"):
        async for _ in ctx.chunks(select(Author.id), size=20, name="uneven"):
            pass
    assert [report.is_estimate for report in reports] == [False, True, True, False, False]
    logged = [record.getMessage() for record in caplog.records if "rough estimate" in record.getMessage()]
    assert len(logged) == 1
    assert "step=uneven" in logged[0]
    assert ctx._attempt.ledger_run is not None
    assert (ctx._attempt.ledger_run.steps["uneven"].pace or {}).get("is_estimate") is None


@pytest.mark.parametrize("kind", [BigInteger, Uuid])
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("seed", range(3))
async def test_the_position_follows_the_rows_where_keys_are_clumped(
    context: MakeContext, database: Database, kind: type[Any], order: str, seed: int
) -> None:
    """Clumps and gaps of keys have the part of the walk that their rows are, also after a restart in the middle."""
    dice, keys = random.Random(seed), set[int]()
    while len(keys) < 2_000:
        begin, step = dice.randrange(2**60), dice.choice((1, 1_000, 10**9))
        keys |= {begin + step * number for number in range(dice.choice((20, 200, 700)))}
    metadata = MetaData()
    table = Table("clumped", metadata, Column("id", kind, primary_key=True), Column("note", Text))
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        values = [key if kind is BigInteger else uuid.UUID(int=key << 60) for key in keys]
        await connection.execute(insert(table), [{"id": value} for value in values])
        await connection.execute(text("ANALYZE clumped"))
    try:
        by = getattr(table.c.id, order)()
        reports, later = await walk_over_restart(context, select(table), by=by, size=100, breaks_at=9)
        for report in [*reports, *later]:
            assert report.share == pytest.approx(report.rows / len(keys), abs=0.03)
    finally:
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)


async def test_percent_is_no_estimate_if_key_and_statistics_agree(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
    ctx, reports = listening(context)
    async for _ in ctx.chunks(select(Author.id), size=20):
        pass
    async for _ in ctx.chunks(select(Author.id), size=20, count="exact", name="counted"):
        pass
    assert not any(report.is_estimate for report in reports)
    assert [report.share_by for report in reports] == [*["position"] * 4, None, *["count"] * 4, None]


async def test_percent_by_rows_is_an_estimate_once_there_are_more_rows_than_estimated(
    context: MakeContext, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
        await session.execute(
            insert(Author), [{**row, "id": row["id"] + 1_000, "code": f"d{row['id']}"} for row in authors(100)]
        )
    ctx, reports = listening(context)
    async for _ in ctx.stream(select(Author.id).order_by(Author.id), size=25):
        pass
    assert reports[0].total
    assert [report.is_estimate for report in reports[:-1]] == [
        report.rows > 1.2 * reports[0].total for report in reports[:-1]
    ]
    shares = [report.share or 0 for report in reports]
    assert shares == sorted(shares)
    assert max(shares[:-1]) <= 1
