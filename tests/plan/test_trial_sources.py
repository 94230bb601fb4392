"""`worker try` of loops over other sources: their rows are looked at, and the sources stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from tests.models import Author
from worker import JobContext, LonghaulError, Settings, job
from worker.plan import try_job
from worker.sources import CsvFile, RedisStream
from worker.types import Database

KEY = "longhaul:test:tried"


class Row(BaseModel):
    """A row of the file."""

    id: int
    name: str


@job
async def read_stream(ctx: JobContext) -> int:
    """Insert an author for each entry."""
    async for batch in ctx.walk(RedisStream(KEY, "import"), size=2):
        await batch.bulk.insert(Author, [_author(int(entry.fields["number"])) for entry in batch])
    return ctx.rows_done


@job
async def load(ctx: JobContext, path: str, is_careful: bool = False) -> int:
    """Insert an author for each row."""
    options: dict[str, Any] = {"on_error": "quarantine", "quarantine_limit": 10} if is_careful else {}
    async for batch in ctx.walk(CsvFile(path, Row), size=3, **options):
        await batch.bulk.insert(Author, [_author(row.id) for row in batch])
    return ctx.rows_done


def _author(number: int) -> dict[str, Any]:
    return {"id": number, "code": f"c{number}", "name": f"n{number}", "region": 1, "seen": 0}


@pytest.mark.parametrize("taken", [None, 0, 3])
async def test_a_trial_takes_no_entry_of_a_stream(
    settings: Settings, database: Database, redis: Redis, taken: int | None
) -> None:
    await redis.delete(KEY)
    ids = [await redis.xadd(KEY, {"number": number}) for number in range(1, 7)]
    if taken is not None:
        await redis.xgroup_create(KEY, "import", id="0")
        if taken:  # by a run whose worker is gone
            await redis.xreadgroup("import", "longhaul:gone:1-redis", {KEY: ">"}, count=taken)
    before = await _describe(redis)
    trial = await try_job(read_stream, settings, batches=2, rows=2)
    first = (taken or 0) + 1
    assert [change.key["id"] for batch in trial.batches for change in batch.changes] == list(
        range(first, min(first + 4, 7))
    )
    assert await _describe(redis) == before
    assert trial.batches[0].first_key == ids[first - 1].decode()


async def test_a_trial_of_a_stream_that_does_not_exist_makes_none(
    settings: Settings, database: Database, redis: Redis
) -> None:
    await redis.delete(KEY)
    assert (await try_job(read_stream, settings)).batches == []
    assert not await redis.exists(KEY)


async def _describe(redis: Redis) -> list[Any]:
    groups = await redis.xinfo_groups(KEY)
    return [groups, *[await redis.xpending(KEY, group["name"]) for group in groups]]


@pytest.mark.parametrize("are_all_bad", [False, True])
async def test_a_trial_shows_the_rows_that_the_source_rejects(
    settings: Settings, database: Database, tmp_path: Path, are_all_bad: bool
) -> None:
    path = tmp_path / "rows.csv"
    good = "x" if are_all_bad else ""
    path.write_text(f"id,name\n{good}1,a\nx2,b\n{good}3,c\n{good}4,d\n")
    with pytest.raises(LonghaulError, match=r"InvalidRow: .*rows.csv, line \d: id: Input should be a valid integer"):
        await try_job(load, settings, {"path": str(path)}, batches=2)
    trial = await try_job(load, settings, {"path": str(path), "is_careful": True}, batches=2, rows=3)
    assert trial.error == ""
    assert [batch.rows for batch in trial.batches] == ([0, 0] if are_all_bad else [2, 1])
    assert [len(batch.rejected) for batch in trial.batches] == ([3, 1] if are_all_bad else [1, 0])
    assert "rows.csv, line 3" in trial.batches[0].rejected[1 if are_all_bad else 0]
