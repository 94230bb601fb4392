"""Views say one thing of a run, whichever figure is read. They are rendered from real servers, without a browser."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from worker import Client
from worker.queue import keys


async def text_of(http: httpx.AsyncClient, path: str, region: str) -> str:
    """Return the words of a region of a view."""
    answer = await http.get(path)
    assert answer.status_code == 200, answer.text
    part = answer.text.partition(f'id="region-{region}" data-region>')[2].partition('class="region"')[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split())


@pytest.mark.parametrize(
    ("by", "percent", "rows"),
    [
        ("position", "40.0 % by position", "Rows 700,000 Rate"),
        ("ranges", "40.0 % of ranges", "Rows 700,000 Rate"),
        ("rows", "≈ 40.0 % by rows", "Rows 700,000 of ≈1.0M Rate"),
        ("count", "40.0 % of rows", "Rows 700,000 of 1,000,000 Rate"),
    ],
)
async def test_percentage_says_what_it_is_of_and_only_that_of_rows_has_a_total_beside_it(
    http: httpx.AsyncClient, client: Client, by: str, percent: str, rows: str
) -> None:
    run = {"job": "walk", "state": "running", "worker": "north", "rows": 700_000, "total": 1_000_000, "percent": 40.0}
    await client.redis.hset(f"{keys.RUN}w", mapping=run | {"percent_by": by})  # type: ignore[arg-type]
    await client.redis.set(f"{keys.IN_PROGRESS}w", "north")
    head = await text_of(http, "/page/runs/w", "head")
    assert percent in head and rows in head


@pytest.mark.parametrize(("helpers", "words"), [(4, "Running 2 in 6 of 10 slots"), (0, "Running 2 of 10 slots")])
async def test_the_overview_counts_the_runs_that_it_lists_and_names_the_slots_that_helpers_take(
    http: httpx.AsyncClient, client: Client, helpers: int, words: str
) -> None:
    hands = [f"walk:hand:{number}" for number in range(helpers)]
    for run_id in ("walk", "other", *hands):
        values: dict[Any, Any] = {"job": "walk", "state": "running", "worker": "north", "rows": 5}
        values |= {"helps": "walk"} if run_id in hands else {}
        await client.redis.hset(f"{keys.RUN}{run_id}", mapping=values)  # type: ignore[misc]
        await client.redis.set(f"{keys.IN_PROGRESS}{run_id}", "north")
    seen = {"seen_at": datetime.now(UTC).isoformat(), "state": "running", "queue": "arq:queue", "max_jobs": 10}
    await client.redis.hset(keys.WORKERS, "north", json.dumps(seen | {"jobs": ["walk", "other", *hands]}))  # type: ignore[misc]
    assert words in await text_of(http, "/", "totals")
    assert (await text_of(http, "/", "active")).count("walk") >= 2
