"""The memory of a walk does not grow with the number of rows."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from sqlalchemy import text

from worker.db.engine import Database
from worker.embedded import Services

FEW, MANY = 10_000, 1_000_000
LIMIT_KB = 30 * 1024


async def peak_kb(servers: Services, kind: str, rows: int) -> int:
    """Return the peak memory of a process that walks a number of rows."""
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.batch.rss", kind, str(rows)],
        env=servers.environment(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


@pytest.fixture
async def million(database: Database) -> None:
    """Fill the table."""
    async with database.transaction() as session:
        await session.execute(
            text("INSERT INTO target (id, touched) SELECT n, false FROM generate_series(1, :many) AS n"),
            {"many": MANY},
        )
    async with database.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("VACUUM ANALYZE target")


@pytest.mark.usefixtures("million")
@pytest.mark.parametrize("kind", ["chunks", "stream"])
async def test_a_million_rows_take_no_more_memory_than_ten_thousand(servers: Services, kind: str) -> None:
    few, many = await peak_kb(servers, kind, FEW), await peak_kb(servers, kind, MANY)
    assert many - few < LIMIT_KB, f"{kind}: {few} KB for {FEW:,} rows, {many} KB for {MANY:,}"
