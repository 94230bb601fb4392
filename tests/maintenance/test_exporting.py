"""`export_table`: exactly the rows of the table, in the folder of the run."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, Visit, keyless
from worker.attempt.control import NoControl
from worker.errors import RegistrationError, SinkUnavailable
from worker.maintenance import export_table


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of an export."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"]
    rows: list[dict[str, Any]] = []
    for part in manifest["parts"]:
        path = folder / part["name"]
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif ".csv" in path.name:
            text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
            rows += csv.DictReader(text.splitlines())
        else:
            rows += [json.loads(line) for line in path.read_text().splitlines()]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *(part["name"] for part in manifest["parts"])}
    return rows


class Dies(NoControl):
    """Ends the attempt with an error behind its second batch."""

    def report(self, progress: Any, rows: int) -> None:
        if progress.batches == 2:
            raise RuntimeError("died")


async def test_rows_are_exported_once_over_an_abort(shop: Shop, tmp_path: Path) -> None:
    await shop.fill_visits(45)
    columns = ["id", Visit.page]
    for form, compress in (("csv", False), ("csv", True), ("jsonl", False), ("parquet", False)):
        options: Any = {"format": form, "compress": compress, "columns": columns, "where": Visit.id > 3, "size": 10}
        job = export_table(Visit, f"{tmp_path}/", **options)
        run_id = f"../run {form} {compress}"
        first = shop.run.context(job.name, run_id, control=Dies())
        with pytest.raises(RuntimeError, match="died"):
            await job(first, str(tmp_path))
        await first._attempt.fail()
        await first._attempt.close()
        folder = Path(await shop.run.attempt(job, run_id))
        assert folder.parent == tmp_path
        assert ".." not in folder.name
        assert [(int(row["id"]), row["page"]) for row in read(folder)] == [(n, f"p{n % 10}") for n in range(4, 46)]


async def test_one_column_and_another_directory(shop: Shop, tmp_path: Path) -> None:
    await shop.fill(Customer, [{"email": f"{n}"} for n in range(1, 6)])
    job = export_table(Customer, tmp_path / "never", columns=[Customer.email])
    folder = Path(await shop.run(job, directory=str(tmp_path / "other")))
    assert read(folder) == [{"email": f"{n}"} for n in range(1, 6)]
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkUnavailable):
        await shop.run(job, directory=str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((Visit, "x"), {"format": "xml"}, "format='xml': give 'csv', 'jsonl', 'parquet'"),
        ((Visit, "x"), {"format": "parquet", "compress": True}, "compress= is for CSV"),
        ((Visit, "x"), {"columns": ["ids"]}, "columns='ids'"),
        ((keyless, "x"), {}, "keyless has no primary key"),
        ((Visit,), {"cron": "0 4 * * *"}, "cron has no value for directory"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        export_table(*arguments, **options)
