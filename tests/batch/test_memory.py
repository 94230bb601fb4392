"""The memory of a walk does not grow with the number of rows."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from sqlalchemy import text

from worker.db.engine import Database
from worker.embedded import Services

FEW = 10_000
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


@pytest.fixture(params=[300_000, 1_000_000])
async def many(request: pytest.FixtureRequest, database: Database) -> int:
    """Fill the table. Returns the number of its rows."""
    rows: int = request.param
    async with database.transaction() as session:
        await session.execute(
            text("INSERT INTO target (id, touched) SELECT n, false FROM generate_series(1, :many) AS n"),
            {"many": rows},
        )
    async with database.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("VACUUM ANALYZE target")
    return rows


@pytest.mark.long
@pytest.mark.parametrize("kind", ["chunks", "stream"])
async def test_memory_of_a_walk_does_not_grow_with_its_rows(servers: Services, kind: str, many: int) -> None:
    least, most = await peak_kb(servers, kind, FEW), await peak_kb(servers, kind, many)
    assert most - least < LIMIT_KB, f"{kind}: {least} KB for {FEW:,} rows, {most} KB for {many:,}"
