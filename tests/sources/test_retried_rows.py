"""The retry of rows of a file that was mended, or changed, since they were quarantined."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.sources import CsvFile

pytestmark = pytest.mark.usefixtures("database")

seen: list[int] = []


class _Row(BaseModel):
    id: int
    note: str = ""


@job
async def load(ctx: JobContext, path: str) -> int:
    """Load rows, and put invalid ones aside."""
    async for batch in ctx.walk(CsvFile(path, _Row), size=2, on_error="quarantine", quarantine_limit=9):
        seen.extend(row.id for row in batch)
    return ctx.rows_done


BEFORE = 'id,note\n1,"a\nb"\nx,\n3,\ny,\n5,'


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("after", "retried"),
    [
        ('id,note\n1,"a\nb"\n2,\n3,\n4,\n5,', [2, 4]),
        ('id,note\n1,"a\nb"\nx,\n3,\n444,last\n', [444]),
        ('id,note\n1,"a\nb"\n222,\n3,\n4,\n5,', [222]),  # what follows has moved
        ('id,note\n1,"a\nb"\n\n\n\n3,\n4,\n5,', []),
        ("id,note\n11111,\n33,\n4,\n5,\n6,\n", []),
        ("id,note\n", []),
    ],
)
async def test_a_retry_processes_a_row_at_its_place_and_no_other(
    client: Client, fast: Settings, tmp_path: Path, compressed: bool, after: str, retried: list[int]
) -> None:
    def write(text: str) -> None:
        path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())

    path = tmp_path / "rows.csv"
    write(BEFORE)
    seen.clear()
    async with working(fast, load):
        run = await client.enqueue(load, path=str(path))
        assert await run.result(timeout=120) == 3
        assert seen == [1, 3, 5]
        seen.clear()
        write(after)
        [retry] = await client.retry_quarantined(run.id)
        try:
            await retry.result(timeout=120)
        except JobFailed as error:
            assert "any more: its earlier lines have changed" in str(error)
    assert seen == retried
