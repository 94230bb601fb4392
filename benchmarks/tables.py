"""The tables of the walk's benchmark: a million rows of real width."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.testing.runner import JobRunner
from worker.types import Database


class Base(DeclarativeBase):
    """Metadata of the benchmarks."""


class Reader(Base):
    """Realistic rows: ten columns, about 150 bytes."""

    __tablename__ = "bench_reader"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    city: Mapped[str]
    country: Mapped[str]
    phone: Mapped[str | None]
    is_active: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    visits: Mapped[int]
    score: Mapped[int]


class Copy(Base):
    """The target of inserts and upserts."""

    __tablename__ = "bench_copy"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    score: Mapped[int]


class History(Base):
    """The record of each transaction of the load."""

    __tablename__ = "bench_history"

    id: Mapped[int] = mapped_column(primary_key=True)
    reader_id: Mapped[int]
    delta: Mapped[int]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass
class Bench:
    """The database that all sides use."""

    database: Database
    run_job: JobRunner
    rows: int


_FILL = """
INSERT INTO bench_reader
SELECT n, 'reader ' || n, 'reader.' || n || '@example.org', 'city ' || n % 1000, 'country ' || n % 200,
       CASE WHEN n % 3 = 0 THEN '+44 20 ' || n END, n % 5 > 0,
       timestamptz '2020-01-01 00:00+00' + n * interval '1 minute', n % 100, 0
  FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n
"""


async def prepare(bench: Bench, *, fill: bool = True) -> None:
    """Create the tables again, so that no comparison inherits the dead rows of the one before."""
    async with bench.database.connection() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("TRUNCATE worker.run CASCADE"))
        if fill:
            await connection.execute(text(_FILL), {"first": 1, "last": bench.rows})
    if fill:
        await vacuum(bench)


async def vacuum(bench: Bench) -> None:
    """Give every run the same start: no dead rows, current statistics, and a checkpoint of earlier writes."""
    async with bench.database.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("VACUUM ANALYZE bench_reader, bench_copy")
        await autocommit.exec_driver_sql("CHECKPOINT")


async def empty_copy(bench: Bench) -> None:
    """Empty the target table."""
    async with bench.database.connection() as connection:
        await connection.execute(text("TRUNCATE bench_copy"))


async def server_version(database: Database) -> str:
    """Return the version of PostgreSQL, for the report."""
    async with database.connection() as connection:
        return str(await connection.scalar(text("SHOW server_version")))
