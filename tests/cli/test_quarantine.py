"""Quarantined rows on the command line."""

from __future__ import annotations

import json

from sqlalchemy import select

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.command_line import CommandLine
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database

bad: set[int] = set()


@job
async def two_loops(ctx: JobContext, add: int) -> int:
    """Count each author twice, in two steps; the first one has bad rows."""
    async for batch in ctx.chunks(select(Author), size=20, name="one", on_error="quarantine", quarantine_limit=0.5):
        for author in batch:
            if author.id in bad:
                raise ValueError(f"bad: {author.id}")
            author.seen += add
    async for batch in ctx.chunks(select(Author), size=20, name="two"):
        for author in batch:
            author.seen += 100
    return ctx.rows_done


async def test_rows_are_listed_shown_retried_and_discarded(
    cli: CommandLine,
    fast: Settings,
    client: Client,
    database: Database,
) -> None:
    bad.clear()
    bad.update({7, 8, 31})
    await fill_authors(database, 60)
    async with working(fast, two_loops):
        run = await client.enqueue(two_loops.options(id="q"), add=1)
        assert await run.result(timeout=120) == 117
        assert await count_seen(database) == {100: 3, 101: 57}
        listed = json.loads((await cli("quarantine", "--json")).stdout)
        assert sorted(row["key"] for row in listed) == [[7], [8], [31]]
        shown = (await cli("quarantine", "show", str(listed[0]["id"]))).stdout
        assert "ValueError: bad: 31" in shown
        assert '"name": "n31"' in shown
        bad.discard(7)
        bad.discard(8)
        again = (await cli("retry", "q", "--quarantined")).stdout.strip()
        assert again.startswith("q:retry:one:")
        assert await client.run(again).result(timeout=120) == 2
        assert await count_seen(database) == {100: 1, 101: 59}
    left = json.loads((await cli("quarantine", "--json")).stdout)
    assert [(row["run_id"], row["key"]) for row in left] == [(again, [31])]  # quarantined again, by the new run
    assert "1 row deleted" in (await cli("quarantine", "delete", str(left[0]["id"]))).stdout
    assert "no quarantined row" in (await cli("quarantine")).stdout
    for arguments in (
        ["retry", "q", "--quarantined"],
        ["quarantine", "show", "1"],
        ["quarantine", "delete", "--run", "q"],
    ):
        ran = await cli(*arguments)
        assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
