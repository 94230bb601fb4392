"""Ready-made jobs with several hands: each row has one effect."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text, true

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, OldVisit, Visit
from tests.support.workers import working
from worker import Client, Job, Settings
from worker.maintenance import archive, backfill_column, purge

ROWS = 300


async def test_hands_change_each_row_once(shop: Shop, fast: Settings, client: Client) -> None:
    await shop.fill_visits(ROWS)
    await shop.fill(Customer, [{"id": n, "email": f"e{n}"} for n in range(1, ROWS + 1)])
    jobs: list[Job[..., Any]] = [
        archive(Visit, OldVisit, where=true(), size=5, parallel=2, name="archive_visits"),
        backfill_column(Customer, "score", lambda row: row.id, size=5, parallel=2, name="score_customers"),
        purge(OldVisit, where=true(), size=5, parallel=2, name="purge_old_visits"),
    ]
    async with working(fast.model_copy(update={"database": shop.settings.database}), *jobs):
        for job in jobs:
            assert await (await client.enqueue(job)).result(timeout=60) == ROWS
    once = dict.fromkeys(range(1, ROWS + 1), 1)
    for operation, table in [
        ("DELETE", "visit"),
        ("INSERT", "old visit"),
        ("DELETE", "old visit"),
        ("UPDATE", "Customer"),
    ]:
        assert await shop.read_log(operation, table) == once
    assert await shop.list(Customer.score) == list(range(1, ROWS + 1))
    async with shop.database.session() as session:
        ranges = text("SELECT run_id FROM worker.step_range GROUP BY run_id HAVING count(*) >= 8")
        assert len(list(await session.scalars(ranges))) == len(jobs)
