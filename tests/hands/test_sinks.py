"""Sinks of walks with several hands."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import select

from tests.faults.conftest import fill_targets
from tests.models import Target
from tests.sinks.test_parts import read_export
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.sinks import CsvParts


@job
async def export_together(ctx: JobContext, directory: str) -> int:
    """Write parts by two hands: the helper opens the sink while the run has a part that is not committed."""
    async with CsvParts(ctx, directory) as parts:
        await ctx.redis.sadd("entered", str(ctx.is_helper))
        async for batch in ctx.stream(select(Target.id).order_by(Target.id), size=10, parallel=2):
            await parts.write(batch, [{"id": id_} for id_ in batch])
            while await ctx.redis.scard("entered") < 2:
                await asyncio.sleep(0.01)
    return ctx.rows_done


async def test_each_row_is_in_one_part_of_all_hands(
    fast: Settings, client: Client, database: Database, tmp_path: Path
) -> None:
    await fill_targets(database, 400)
    async with working(fast, export_together):
        run = await client.enqueue(export_together, str(tmp_path / "export"))
        assert await run.result(timeout=60) == 400
    manifest, ids = read_export(tmp_path / "export")
    assert manifest["run"] == run.id
    assert manifest["complete"] is True
    assert sorted(ids) == list(range(1, 401))
