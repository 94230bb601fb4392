"""`ParquetFile`: each row once over restarts and kills, bad rows by their place, and files that have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, text

from tests.models import Author
from tests.sources.rows import UserRow
from tests.sources.test_files import begin, read, read_over_restarts
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import CursorMismatch, InvalidRow, SourceUnavailable, UnsupportedStatement
from worker.ledger import Ledger
from worker.sources import ParquetFile
from worker.testing.runner import JobRunner

ROWS = 47


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with row groups of 13 rows."""
    found = tmp_path / "rows.parquet"
    write(found)
    return found


def write(path: Path, *, first: int = 1, bad: int = 0) -> None:
    numbers = list(range(first, first + ROWS))
    names = [None if number == bad else f"n{number}" for number in numbers]
    pq.write_table(pa.table({"id": numbers, "name": names}), path, row_group_size=13)


async def test_each_row_is_written_once_over_kills(database: Database, settings: Settings, path: Path) -> None:
    last = await run_under_kills(settings, "tests.sources.killed", "parquet", str(path), kills=2, seed=4)
    assert last == f"done {ROWS}"
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == list(range(1, ROWS + 1))


async def test_each_row_is_read_once_over_restarts(context: MakeContext, path: Path) -> None:
    rows = await read_over_restarts(context, lambda: ParquetFile(path, UserRow))
    assert [(row.id, row.name) for row in rows] == [(number, f"n{number}") for number in range(1, ROWS + 1)]


async def test_row_groups_before_the_cursor_are_not_read_again(
    context: MakeContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(context, lambda: ParquetFile(path), size=30)
    groups: list[int] = []
    original = ParquetFile._read_group

    def read_group(self: Any, group: int, skipped: int) -> Any:
        groups.append(group)
        return original(self, group, skipped)

    monkeypatch.setattr(ParquetFile, "_read_group", read_group)
    assert len(await read(context("run"), ParquetFile(path), size=30)) == 17
    assert groups == [2, 3]


async def test_only_the_given_columns_are_read(context: MakeContext, path: Path) -> None:
    assert (await read(context(), ParquetFile(path, columns=["id"])))[0] == {"id": 1}
    with pytest.raises(UnsupportedStatement, match="has no column nonsense: it has id, name"):
        await read(context(), ParquetFile(path, columns=["nonsense"]))


async def test_a_file_that_has_changed_is_refused(context: MakeContext, path: Path) -> None:
    await begin(context, lambda: ParquetFile(path))
    write(path, first=2)
    with pytest.raises(CursorMismatch, match=r"has changed since its first 5 rows were done; .* --from-start"):
        await read(context("run"), ParquetFile(path))


@pytest.mark.parametrize("change", ["other rows", "shorter", "renamed", "deleted"])
async def test_a_file_that_changes_while_it_is_read_commits_no_batch_of_mixed_content(
    context: MakeContext, path: Path, database: Database, change: str
) -> None:
    other = path.with_name("other.parquet")
    write(other, first=101)
    found: list[int] = []

    async def walk() -> None:
        ctx = context("run")
        async for batch in ctx.walk(ParquetFile(path), size=5, name="rows"):
            if batch.number == 2:
                if change == "other rows":
                    path.write_bytes(other.read_bytes())
                elif change == "shorter":
                    path.write_bytes(path.read_bytes()[:200])
                elif change == "renamed":
                    other.replace(path)
                else:
                    path.unlink()
            found.extend(row["id"] for row in batch)
        await ctx._attempt.succeed()

    if change in ("renamed", "deleted"):  # the open file is still the old one
        await walk()
        assert found == list(range(1, ROWS + 1))
        return
    with pytest.raises(CursorMismatch, match=r"was changed while it was read: .* worker retry run --from-start"):
        await walk()
    [run] = await Ledger(database).list_runs(run_id="run")
    assert run.rows == 5


async def test_a_file_that_cannot_be_read_is_named(context: MakeContext, path: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(SourceUnavailable, match=f"{wrong} cannot be read"):
            await read(context(), ParquetFile(wrong))
    whole = path.read_bytes()
    for content in (b"", b"id,name\n", whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(UnsupportedStatement, match="is not a Parquet file, or is damaged"):
            await read(context(), ParquetFile(path))


PATH: list[Path] = []


@job
async def write_good_rows(ctx: JobContext) -> int:
    """Read the rows that can be parsed."""
    async for batch in ctx.walk(ParquetFile(PATH[0], UserRow), size=10, on_error="quarantine", quarantine_limit=3):
        assert all(row.name for row in batch)
    return ctx.rows_done


async def test_a_bad_row_is_quarantined_by_its_place(database: Database, settings: Settings, path: Path) -> None:
    write(path, bad=15)
    PATH[:] = [path]
    assert await JobRunner(database, settings)(write_good_rows) == ROWS - 1
    [row] = await Ledger(database).quarantine.list_rows()
    assert row.key == [1, 1]
    assert "row 2 of row group 2: name: Input should be a valid string" in row.error


async def test_a_value_that_python_does_not_have_is_a_row_to_quarantine(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    times = pa.array([1_000, 1_001, 2_000, 3_003], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "at": times}), path)
    with pytest.raises(InvalidRow, match=r"rows.parquet, row 2 of row group 1: column at: .*nano"):
        async for _ in context().walk(ParquetFile(path), size=2):
            pass
    ctx = context()
    loop = ctx.walk(ParquetFile(path), size=2, on_error="quarantine", quarantine_limit=2)
    assert [row["id"] async for batch in loop for row in batch] == [1, 3]
    async with database.session() as session:
        shown = await session.execute(text("SELECT row FROM worker.quarantine WHERE run_id = :id"), {"id": ctx.run_id})
        assert [row.row["id"] for row in shown] == ["2", "4"]


async def test_columns_of_one_name_are_refused_unless_others_are_selected(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [pa.array([1]), pa.array([2]), pa.array([3])]
    pq.write_table(pa.Table.from_arrays(columns, names=["a", "a", "b"]), path)
    with pytest.raises(UnsupportedStatement, match="several columns of the name a"):
        async for _ in context().walk(ParquetFile(path)):
            pass
    loop = context().walk(ParquetFile(path, columns=["b"]))
    assert [row async for batch in loop for row in batch] == [{"b": 3}]
