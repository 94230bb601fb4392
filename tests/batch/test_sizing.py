"""The batch size adapts to the time of batches."""

from __future__ import annotations

import math
import random

import pytest
from sqlalchemy import select, update

from tests.models import Author, authors
from worker import Settings, load_settings
from worker.batch.sizing import AdaptiveSizer, FixedSizer, Size, make_sizer
from worker.db.engine import Database
from worker.errors import SettingsError, UnsupportedStatement
from worker.settings import BatchSettings, ThrottleSettings
from worker.testing.runner import JobRunner

RULES = BatchSettings(target_seconds=0.5, first_size=1000, min_size=100, max_size=20_000)


def walk(
    pace: AdaptiveSizer, batches: int, row_seconds: float, *, fixed: float = 0.0, noise: float = 0.0
) -> list[float]:
    """Return the seconds of a number of batches, for a fixed time per row."""
    chance = random.Random(1)
    seconds = []
    for _ in range(batches):
        took = (fixed + pace.size * row_seconds) * chance.uniform(1 - noise, 1 + noise)
        pace.note(pace.size, took)
        seconds.append(took)
    return seconds


@pytest.mark.parametrize(("row_seconds", "size"), [(1e-4, 4_700), (1e-3, 470), (1e-6, 20_000), (1e-1, 100)])
def test_batches_come_to_take_the_time_that_is_aimed_at(row_seconds: float, size: int) -> None:
    pace = AdaptiveSizer(RULES)
    walk(pace, 30, row_seconds, noise=0.1)
    assert size * 0.85 <= pace.size <= size * 1.15


def test_a_database_that_slows_down_gets_smaller_batches_at_once() -> None:
    pace = AdaptiveSizer(RULES)
    walk(pace, 20, 1e-4)
    before = pace.size
    seconds = walk(pace, 6, 1e-3)
    assert pace.size < before / 5
    assert seconds[-1] < 0.7
    walk(pace, 30, 1e-4)
    assert pace.size > before * 0.85


@pytest.mark.parametrize(
    ("pace", "limit", "size"),
    [
        (None, None, 1_000),
        (60.0, None, 120),
        (60.0, 7, 7),
        (0.1, None, 1),
        (1e6, None, 1_000),
        (1e308, 5, 5),
        (math.inf, None, 1_000),
        (None, 10, 10),
    ],
)
def test_a_batch_has_the_rows_of_two_seconds_of_a_pace(pace: float | None, limit: int | None, size: int) -> None:
    sizer = AdaptiveSizer(BatchSettings(first_size=1_000))
    assert sizer.choose(pace, limit) == size


@pytest.mark.parametrize(
    ("pace", "limit", "size"),
    [(None, None, 500), (60.0, None, 500), (49.0, None, 490), (0.01, None, 1), (10.0, 30, 30), (None, 7, 7)],
)
def test_a_given_size_has_the_rows_of_ten_seconds_of_a_pace(pace: float | None, limit: int | None, size: int) -> None:
    assert FixedSizer(500).choose(pace, limit) == size


def test_growth_is_by_a_fifth_at_most_once_it_is_near() -> None:
    pace = AdaptiveSizer(RULES)
    walk(pace, 20, 1e-4)
    before = pace.size
    walk(pace, 1, 5e-5)
    assert before < pace.size <= before * 1.2


def test_a_size_that_is_said_is_the_size(settings: Settings) -> None:
    assert make_sizer(None, settings.batch, kind="chunks").size == settings.batch.first_size
    fixed = make_sizer(7, settings.batch, kind="chunks")
    fixed.note(7, 100.0)
    assert fixed.size == 7
    for wrong in (0, -1, "many"):
        with pytest.raises(UnsupportedStatement, match="size="):
            make_sizer(wrong, settings.batch, kind="chunks")  # type: ignore[arg-type]


def test_sizes_in_settings_are_checked() -> None:
    assert load_settings(environment={"LONGHAUL_BATCH__SIZE": "500"}).batch.size == 500
    assert load_settings(environment={"LONGHAUL_BATCH__SIZE": "auto"}).batch.size == "auto"
    with pytest.raises(SettingsError, match=r"batch.size"):
        load_settings(environment={"LONGHAUL_BATCH__SIZE": "0"})
    with pytest.raises(SettingsError, match=r"batch\.max_size is below batch\.min_size"):
        load_settings(environment={"LONGHAUL_BATCH__MAX_SIZE": "50"})


async def test_every_row_is_walked_once_whatever_the_sizes(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = random.Random(3)

    def jump(self: AdaptiveSizer, rows: int, seconds: float, row_bytes: float | None = None) -> None:
        self.size = sizes.randint(1, 40)

    monkeypatch.setattr(AdaptiveSizer, "note", jump)
    small = settings.model_copy(update={"batch": settings.batch.model_copy(update={"first_size": 13, "min_size": 1})})
    ctx = JobRunner(database, small).context()
    await ctx.bulk.insert(Author, authors(2_000))
    walked: list[int] = []
    async for batch in ctx.chunks(select(Author), size="auto"):
        walked += [author.id for author in batch]
    async for partition in ctx.stream(select(Author.id).order_by(Author.id.desc()), size="auto"):
        walked += partition
    assert walked == [*range(1, 2001), *range(2000, 0, -1)]
    assert await ctx.sweep(update(Author).values(seen=Author.seen + 1), size="auto") == 2000
    run = await ctx._attempt.durable_run()
    await ctx._attempt.close()
    assert run.checkpoints.batches > 200


@pytest.mark.parametrize(("size", "rows"), [("auto", 14), (20, 20)])
async def test_the_first_batch_of_a_paced_walk_is_small(
    database: Database, settings: Settings, size: Size, rows: int
) -> None:
    paced = settings.model_copy(update={"throttle": ThrottleSettings(max_rows_per_second=7)})
    ctx = JobRunner(database, paced).context()
    await ctx.bulk.insert(Author, authors(50))
    async for batch in ctx.chunks(select(Author), size=size):
        assert len(batch) == rows
        break
    await ctx._attempt.close()
