"""Each row takes effect once, for each kind of effect, while processes are killed by SIGKILL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.maintenance.killed import make_jobs
from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, OldVisit, Order, Visit
from tests.support.kills import run_under_kills

ROWS = 205
#: The effect that the triggers count for each kind: operation, table, and the number of rows.
EFFECTS = {
    "archive": [("INSERT", "old visit", ROWS), ("DELETE", "visit", ROWS)],
    "backfill sql": [("UPDATE", "visit", ROWS)],
    "backfill function": [("UPDATE", "visit", ROWS)],
    "copy": [("INSERT", "old visit", ROWS)],
    "dedupe": [("DELETE", "visit", ROWS - 3)],
    "export": [],
    "load": [("INSERT", "Customer", ROWS)],
    "purge": [("DELETE", "order", ROWS), ("DELETE", "Customer", ROWS)],
    "purge with parents": [("DELETE", "order", ROWS), ("DELETE", "Customer", ROWS)],
    "recompute": [("UPDATE", "visit", ROWS)],
    "recompute totals": [("INSERT", "total", ROWS)],
}


@pytest.mark.long
@pytest.mark.parametrize("kind", make_jobs(Path()))
async def test_each_row_takes_effect_once_over_kills(shop: Shop, tmp_path: Path, kind: str) -> None:
    await shop.execute("TRUNCATE worker.run CASCADE")
    await shop.fill_visits(ROWS)
    if kind == "load":
        lines = "".join(f"{n}\n" for n in range(ROWS))
        (tmp_path / "a.csv").write_text(f"email\n{lines}")
    else:
        await shop.fill(Customer, [{"id": n, "email": f"{n}"} for n in range(1, ROWS + 1)])
        await shop.fill(Order, [{"id": n, "customer_id": n} for n in range(1, ROWS + 1)])
    arguments = ("tests.maintenance.killed", kind, str(tmp_path))
    last = await run_under_kills(shop.run.settings, *arguments, kills=5, seed=len(kind))
    assert last.startswith("done ")
    for operation, table, rows in EFFECTS[kind]:
        log = await shop.read_log(operation, table)
        assert len(log) == rows
        if kind != "load":
            assert set(log.values()) == {1}
    if kind == "export":
        folder = tmp_path / "killed"
        parts = [part["name"] for part in json.loads((folder / "manifest.json").read_text())["parts"]]
        found = [json.loads(line)["id"] for part in parts for line in (folder / part).read_text().splitlines()]
        assert found == list(range(1, ROWS + 1))
        assert {path.name for path in folder.iterdir()} == {"manifest.json", *parts}
    if kind == "load":
        assert sorted(await shop.list(Customer.email)) == sorted(map(str, range(ROWS)))
    if kind in ("archive", "copy"):
        assert await shop.list(OldVisit.id) == list(range(1, ROWS + 1))
    if kind == "dedupe":
        assert await shop.list(Visit.id) == [1, 2, 3]
