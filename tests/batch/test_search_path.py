"""Functions of other roles, in a schema of the search path, are not called with the worker's rights."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import DateTime, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from tests.models import Base
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.ledger import Ledger

#: Each is a better match for some call than the function of pg_catalog, which takes any type.
TRAPS = [
    "FUNCTION to_jsonb(timestamptz) RETURNS jsonb AS $$ {} SELECT pg_catalog.to_jsonb($1) $$",
    "FUNCTION to_jsonb(text) RETURNS jsonb AS $$ {} SELECT pg_catalog.to_jsonb($1) $$",
    "FUNCTION make_interval(secs double precision) RETURNS interval AS $$ {} SELECT interval '1 s' * secs $$",
    "FUNCTION unnest(text[]) RETURNS SETOF text AS $$ {} SELECT pg_catalog.unnest($1) $$",
    "FUNCTION unnest(integer[]) RETURNS SETOF integer AS $$ {} SELECT pg_catalog.unnest($1) $$",
    "FUNCTION unnest(timestamptz[]) RETURNS SETOF timestamptz AS $$ {} SELECT pg_catalog.unnest($1) $$",
    "FUNCTION pg_column_size(timestamptz) RETURNS integer AS $$ {} SELECT 8 $$",
    "FUNCTION pg_column_size(jsonb) RETURNS integer AS $$ {} SELECT 8 $$",
    "FUNCTION trap_state(text[], text) RETURNS text[] AS $$ {} SELECT $1 || $2 $$",
    "AGGREGATE array_agg(text) (SFUNC = trap_state, STYPE = text[], INITCOND = '{{}}')",
]


class Timed(Base):
    """Its key is a moment: a cursor of it is made by the server."""

    __tablename__ = "timed_key"

    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    n: Mapped[int] = mapped_column(default=0)
    document: Mapped[dict[str, int] | None] = mapped_column(JSONB)


@pytest.mark.parametrize("skip_locked", [False, True])
async def test_no_function_of_the_search_path_is_called(
    context: MakeContext, database: Database, skip_locked: bool
) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    await context().bulk.insert(Timed, [{"at": begin + timedelta(hours=n)} for n in range(300)])
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE loot (what text)")
        for trap in TRAPS:
            name = trap.split()[1].split("(")[0]
            sql = trap.format(f"INSERT INTO public.loot VALUES ('{name}');")
            language = " LANGUAGE sql" if trap.startswith("FUNCTION") else ""
            await connection.exec_driver_sql(f"CREATE {sql}{language}")
    ctx = context()
    async for batch in ctx.chunks(select(Timed), size=100, skip_locked=skip_locked):
        for row in batch:
            row.n += 1
    async for batch in ctx.chunks(select(Timed.at), size=100):
        await batch.bulk.update(Timed, [{"at": at, "n": 2} for at in batch])
        await batch.bulk.upsert(Timed, [{"at": at, "n": 3} for at in batch])
    async for partition in ctx.stream(select(Timed.at, Timed.n).order_by(Timed.at), size=100):
        await partition.bulk.delete(Timed, [at for at, _ in partition][:10])
    await ctx.sweep(update(Timed).values(n=Timed.n + 1), size=100)
    await ctx.sweep(delete(Timed).where(Timed.n > 5), size=100)
    ledger = Ledger(database)
    await ledger.list_runs()
    await ledger.find_orphans(idle_seconds=0)
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Timed)) == 270
        assert (await session.scalars(text("SELECT DISTINCT what FROM loot"))).all() == []
