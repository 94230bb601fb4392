"""`worker plan` and `worker try` look at the ready-made jobs as at any other, and change nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, true

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, OldVisit, Order, Total, Visit
from worker.maintenance import (
    archive,
    backfill_column,
    copy_table,
    dedupe,
    export_table,
    load_file,
    purge,
    recompute,
)
from worker.plan import make_plan, try_job

TOTALS = select(Visit.shop, func.count().label("visits")).group_by(Visit.shop).order_by(Visit.shop)


async def test_plan_follows_every_loop_of_a_job(shop: Shop) -> None:
    await shop.fill_visits(20)
    await shop.fill(Customer, [{"id": 1, "email": "a"}])
    plan = await make_plan(purge(Customer, where=true()), shop.run.settings)
    assert plan.ended == ""
    assert [loop.table.removeprefix('"My Shop".') for loop in plan.loops] == [
        "shipment",
        "line",
        '"order"',
        '"Customer"',
    ]
    assert any("CREATE INDEX CONCURRENTLY" in warning for loop in plan.loops for warning in loop.warnings)
    for job in (
        archive(Visit, OldVisit, older_than=timedelta(hours=1), by=Visit.at),
        backfill_column(Visit, Visit.page, "x"),
        backfill_column(Visit, Visit.page, lambda row: "x"),
        copy_table(Visit, OldVisit),
        dedupe(Visit, "page"),
        export_table(Visit, "/nonexistent/directory"),
        recompute(Visit, {"page": "x"}),
        recompute(Total, TOTALS),
    ):
        plan = await make_plan(job, shop.run.settings)
        assert plan.ended == "", job.name
        assert [loop.refusal for loop in plan.loops] == [""], job.name


async def test_trial_shows_the_changes_of_each_batch_and_keeps_none(shop: Shop, tmp_path: Path) -> None:
    await shop.fill_visits(20)
    await shop.fill(Customer, [{"id": n, "email": f"{n}"} for n in range(101, 106)])
    await shop.fill(Order, [{"id": n, "customer_id": n} for n in range(101, 106)])
    settings = shop.run.settings
    trial = await try_job(archive(Visit, OldVisit, where=Visit.id <= 4), settings, batches=1, rows=3)
    assert trial.error == ""
    changes = sorted((each.table.split(".")[-1], each.action) for each in trial.batches[0].changes)
    assert changes == [('"old visit"', "INSERT")] * 3 + [("log", "INSERT")] * 6 + [("visit", "DELETE")] * 3
    trial = await try_job(purge(Customer, where=true(), children="with_parents"), settings, batches=1, rows=2)
    tables = [each.table.split(".")[-1] for each in trial.batches[0].changes if each.action == "DELETE"]
    assert sorted(tables) == ['"Customer"', '"Customer"', '"order"', '"order"']
    trial = await try_job(export_table(Visit, str(tmp_path / "no")), settings, batches=1)
    assert (trial.error, [batch.rows for batch in trial.batches]) == ("", [20])
    path = tmp_path / "a.csv"
    path.write_text("email\nx\ny\n")
    trial = await try_job(load_file(Customer), settings, {"path": str(path)}, batches=1)
    assert [(each.action, each.after["email"]) for each in trial.batches[0].changes if "Customer" in each.table] == [
        ("INSERT", "x"),
        ("INSERT", "y"),
    ]
    assert [await shop.count(each) for each in (Visit, OldVisit, Customer, Order)] == [20, 0, 5, 5]
    assert not (tmp_path / "no").exists()
