"""`load_file`: each row of the file is loaded once, and validated by the types of the columns."""

from __future__ import annotations

import gzip
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, Kind
from worker.errors import BulkError, InvalidRow, RegistrationError, SourceUnavailable, UsageError
from worker.maintenance import load_file


def write(path: Path, count: int = 45) -> Path:
    """Write customers as the suffix says."""
    rows = [{"email": f"user {n}", "score": n} for n in range(1, count + 1)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f'{{"email": "{row["email"]}", "score": {row["score"]}}}\n' for row in rows))
    else:
        mark = "\t" if ".tsv" in path.name else ","
        text = f"email{mark}score\n" + "".join(f"{row['email']}{mark}{row['score']}\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


async def test_rows_are_loaded_once_over_an_abort(shop: Shop, tmp_path: Path) -> None:
    for number, name in enumerate(("a.csv", "a.tsv.gz", "a.jsonl", "a.parquet")):
        job = load_file(Customer, write(tmp_path / name), size=10)
        shop.run_id = f"{shop.run_id}{number}"
        await shop.break_off(job, 100 * number + 25)
        assert await shop.count(Customer) == 20
        await shop.execute(f'ALTER SEQUENCE "My Shop"."Customer_Id_seq" RESTART {100 * number + 50}')
        assert await shop.resume(job) == 45
        assert await shop.list(Customer.email, Customer.score) == sorted((f"user {n}", n) for n in range(1, 46))
        await shop.execute('DELETE FROM "My Shop"."Customer"')
        await shop.execute(f'ALTER SEQUENCE "My Shop"."Customer_Id_seq" RESTART {100 * number + 101}')


async def test_values_are_of_the_types_of_the_columns(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "email,joined_at,left_on,score,slug,kind,balance\n"
        "x,2026-01-02T03:04:05Z,2026-02-03,7,,firm,1.50\n"
        ",2026-01-02T03:04:05+01:00,,,s,a person,2\n"
    )
    assert await shop.run(load_file(Customer), path=str(path)) == 2
    async with shop.database.session() as session:
        last, first = (await session.scalars(select(Customer).order_by(Customer.email))).all()
    assert (first.joined_at, first.left_on) == (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), date(2026, 2, 3))
    assert (first.score, first.slug, first.kind, first.balance) == (7, None, Kind.firm, Decimal("1.50"))
    assert (last.email, last.left_on, last.score, last.slug, last.kind) == ("", None, None, "s", Kind.person)


async def test_existing_rows_fail_are_kept_or_overwritten(shop: Shop, tmp_path: Path) -> None:
    await shop.fill(Customer, [{"email": "user 2", "score": 0}])
    path = write(tmp_path / "a.csv", 3)
    with pytest.raises(BulkError, match="one email"):
        await shop.run(load_file(Customer, path))
    assert await shop.run(load_file(Customer, path, on_conflict="skip", by=Customer.email)) == 3
    assert await shop.list(Customer.score) == [0, 1, 3]
    assert await shop.run(load_file(Customer, path, on_conflict="update", by="email")) == 3
    assert await shop.list(Customer.score) == [1, 2, 3]


BAD = [
    ("email,score\na,1\nb,x\n", "line 3: score: .*valid integer"),
    ("email,scor\na,1\n", "line 2: scor: Extra inputs are not permitted"),
    ("score\n1\n", "line 2: email: Field required"),
    (f"email\n{'x' * 31}\n", "line 2: email: .*at most 30"),
    ("email,joined_at\na,2026-01-02T03:04:05\n", "line 2: joined_at: .*timezone"),
]


async def test_bad_row_is_named_by_line_and_can_be_put_aside(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, problem in BAD:
        path.write_text(text)
        with pytest.raises(InvalidRow, match=problem):
            await shop.run(load_file(Customer, path))
        assert await shop.count(Customer) == 0
    path.write_text(BAD[0][0])
    assert await shop.run(load_file(Customer, path, on_error="quarantine", quarantine_limit=1)) == 1


async def test_missing_file_and_path_outside_are_named(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "secret.csv")
    (tmp_path / "in" / "link.csv").symlink_to(tmp_path / "secret.csv")
    job = load_file(Customer, within=tmp_path / "in")
    with pytest.raises(SourceUnavailable, match=r"in/none.csv"):
        await shop.run(job, path="none.csv")
    for path in ("../secret.csv", str(tmp_path / "secret.csv"), "link.csv", "https://example.org/a.csv"):
        with pytest.raises(UsageError, match=r"is not in .*/in, the directory that this job reads from"):
            await shop.run(job, path=path)
    with pytest.raises(UsageError, match=r"the suffix of a.xlsx names no format: set format="):
        await shop.run(job, path="a.xlsx")
    assert await shop.count(Customer) == 0
    assert await shop.run(job, path=str(write(tmp_path / "in" / "b.csv"))) == 45


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "xml"}, "format='xml': give 'csv', 'jsonl', 'parquet'"),
        ({"on_conflict": "x"}, "on_conflict='x'"),
        ({"by": "email"}, "by= needs on_conflict="),
        ({"on_conflict": "skip", "by": "mail"}, "by='mail': .*did you mean email"),
        ({"cron": "0 4 * * *"}, "cron has no value for path"),
    ],
)
def test_bad_arguments_are_named(options: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        load_file(Customer, **options)
