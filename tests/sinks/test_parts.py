"""Sinks: exactly the parts of committed batches are listed and present, whatever is killed."""

from __future__ import annotations

import csv
import gzip
import json
import resource
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, text

from tests.models import Author, authors
from tests.sinks.killed import SINKS
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import SinkUnavailable, UsageError
from worker.sinks import CsvParts, JsonLinesParts, ParquetParts
from worker.testing.runner import JobRunner

ROWS = 205


async def fill(database: Database, count: int = ROWS) -> None:
    async with database.transaction() as session:
        session.add_all([Author(**row) for row in authors(count)])


def walk(ctx: JobContext, loop: str) -> Any:
    """Return a loop over the authors."""
    names = select(Author.id, Author.name)
    return ctx.chunks(names, size=10) if loop == "chunks" else ctx.stream(names.order_by(Author.id), size=10)


def read_part(path: Path) -> list[int]:
    """Return the ids of a part."""
    if path.suffix == ".parquet":
        return [int(number) for number in pq.read_table(path)["id"].to_pylist()]
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    if ".csv" in path.name:
        return [int(row["id"]) for row in csv.DictReader(text.splitlines())]
    return [json.loads(line)["id"] for line in text.splitlines()]


def read_export(directory: Path) -> tuple[dict[str, Any], list[int]]:
    """Return the manifest, and the ids of its parts. Fail if another file is there."""
    manifest = json.loads((directory / "manifest.json").read_text())
    names = [part["name"] for part in manifest["parts"]]
    assert sorted(path.name for path in directory.iterdir()) == sorted([*names, "manifest.json"])
    found = [read_part(directory / name) for name in names]
    assert [part["rows"] for part in manifest["parts"]] == [len(ids) for ids in found]
    assert [part["bytes"] for part in manifest["parts"]] == [(directory / name).stat().st_size for name in names]
    return manifest, [number for ids in found for number in ids]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "csv" else [pytest.mark.long]) for kind in SINKS]
)
async def test_no_row_is_twice_or_missing_over_kills(
    database: Database, settings: Settings, tmp_path: Path, kind: str
) -> None:
    await fill(database)
    last = await run_under_kills(settings, "tests.sinks.killed", kind, str(tmp_path / "out"), kills=4, seed=3)
    assert last == f"done {ROWS}"
    manifest, ids = read_export(tmp_path / "out")
    assert ids == list(range(1, ROWS + 1))
    assert (manifest["run"], manifest["complete"], manifest["rows"]) == ("run", True, ROWS)


@pytest.mark.parametrize("loop", ["stream", "chunks"])
async def test_parts_of_a_batch_that_failed_are_removed(
    context: MakeContext, database: Database, tmp_path: Path, loop: str
) -> None:
    await fill(database, 45)
    first = context("run")
    with pytest.raises(RuntimeError, match="died"):
        async with JsonLinesParts(first, tmp_path) as parts:
            async for batch in walk(first, loop):
                await parts.write(batch)
                if batch.number == 3:
                    raise RuntimeError("died")
    await first._attempt.fail()
    await first._attempt.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 3
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert not manifest["complete"]
    (tmp_path / ".part-xyz").write_text("torn")
    (tmp_path / "notes.txt").write_text("of a person")
    second = context("run")
    async with JsonLinesParts(second, tmp_path):
        assert len(list(tmp_path.glob("*.jsonl"))) == 2
        assert not (tmp_path / ".part-xyz").exists()
        assert (tmp_path / "notes.txt").exists()


async def test_attempt_that_dies_behind_its_loop_leaves_the_manifest_to_the_next(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    await fill(database, 45)
    for number in (1, 2):
        ctx = context("run")
        try:
            async with CsvParts(ctx, tmp_path) as parts:
                async for batch in walk(ctx, "stream"):
                    await parts.write(batch)
                if number == 1:
                    raise RuntimeError("died")
        except RuntimeError:
            await ctx._attempt.fail()
            await ctx._attempt.close()
            assert not json.loads((tmp_path / "manifest.json").read_text())["complete"]
    await ctx._attempt.succeed()
    manifest, ids = read_export(tmp_path)
    assert manifest["complete"]
    assert ids == list(range(1, 46))


@job
async def export_again(ctx: JobContext, directory: str) -> int:
    """Write a stream that has no key to continue behind, and die in the first attempt."""
    names = select(Author.id, Author.name).order_by(Author.name)
    async with JsonLinesParts(ctx, directory) as parts:
        async for batch in ctx.stream(names, size=10, on_restart="start_over"):
            await parts.write(batch)
            if batch.number == 3 and not DIED:
                DIED.append(1)
                raise RuntimeError("died")
    return ctx.rows_done


DIED: list[int] = []


async def test_stream_that_starts_over_drops_the_parts_of_its_first_pass(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    await fill(database, 45)
    DIED.clear()
    run = JobRunner(database, settings)
    with pytest.raises(RuntimeError, match="died"):
        await run.attempt(export_again, "run", str(tmp_path))
    assert await run.attempt(export_again, "run", str(tmp_path)) == 45
    assert sorted(read_export(tmp_path)[1]) == list(range(1, 46))


async def test_last_batch_of_a_loop_that_was_left_by_break_counts(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    await fill(database, 45)
    ctx = context("run")
    async with JsonLinesParts(ctx, tmp_path) as parts:
        async for batch in ctx.stream(select(Author.id, Author.name).order_by(Author.id), size=10):
            await parts.write(batch)
            if batch.number == 2:
                break
    assert read_export(tmp_path)[1] == list(range(1, 21))
    await ctx._attempt.succeed()


# --- values


@dataclass
class Values:
    id: int
    value: Any


VALUES = [
    ('a,b\n"c"', 'a,b\n"c"', 'a,b\n"c"'),
    (None, "", None),
    (True, "true", True),
    (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00", "2026-01-02T03:04:00Z"),
    (Decimal("1.50"), "1.50", "1.50"),
    ({"a": [1, "ä"]}, '{"a":[1,"ä"]}', {"a": [1, "ä"]}),
]


@pytest.mark.parametrize("row", [lambda v: Values(1, v), lambda v: {"id": 1, "value": v}])
@pytest.mark.parametrize("compress", [True, False])
async def test_values_are_written_in_the_form_of_the_format(
    context: MakeContext, database: Database, tmp_path: Path, row: Any, compress: bool
) -> None:
    await fill(database, 1)
    ctx = context("run")
    rows = [row(value) for value, _, _ in VALUES]
    async with (
        CsvParts(ctx, tmp_path / "csv", compress=compress) as first,
        JsonLinesParts(ctx, tmp_path / "json", compress=compress) as second,
    ):
        async for batch in ctx.chunks(select(Author)):
            assert await first.write(batch, []) is None
            assert await first.write(batch, rows)
            assert await second.write(batch, rows)
            assert await second.write(batch)  # two parts for one batch, one of ORM objects
    await ctx._attempt.succeed()
    read = gzip.decompress if compress else bytes
    [path] = (tmp_path / "csv").glob("*.csv*")
    text = read(path.read_bytes()).decode()
    assert [line["value"] for line in csv.DictReader(text.splitlines(keepends=True))] == [csv_ for _, csv_, _ in VALUES]
    paths = sorted((tmp_path / "json").glob("*.jsonl*"), key=lambda path: path.stat().st_size)
    lines = [json.loads(line) for path in paths for line in read(path.read_bytes()).decode().splitlines()]
    values = [line["value"] for line in lines if "value" in line]
    assert values == [json_ for _, _, json_ in VALUES]
    assert [line["id"] for line in lines if "value" not in line] == [1]


async def test_parquet_parts_have_the_given_schema(context: MakeContext, database: Database, tmp_path: Path) -> None:
    await fill(database, 2)
    schema = pa.schema([("id", pa.int32()), ("name", pa.string()), ("note", pa.string())])
    ctx = context("run")
    async with ParquetParts(ctx, tmp_path, schema=schema) as parts:
        async for batch in ctx.chunks(select(Author.id, Author.name), size=1):
            await parts.write(batch)
    await ctx._attempt.succeed()
    assert {str(pq.read_schema(path)) for path in tmp_path.glob("*.parquet")} == {str(schema)}
    again = context("other")
    with pytest.raises(UsageError, match="a row does not fit the schema"):
        async with ParquetParts(again, tmp_path / "other", schema=pa.schema([("name", pa.int32())])) as parts:
            async for batch in again.chunks(select(Author.id, Author.name), size=1):
                await parts.write(batch)
    await again._attempt.fail()


# --- a sink that cannot be written


async def write_to(ctx: JobContext, directory: Path, *, row_bytes: int = 1) -> None:
    async with JsonLinesParts(ctx, directory) as parts:
        async for batch in ctx.stream(select(Author.id, Author.name).order_by(Author.id), size=10):
            await parts.write(batch, [{"id": key, "text": "x" * row_bytes} for key, _ in batch])
    await ctx._attempt.succeed()


async def test_directory_that_cannot_be_made_is_named(context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        ctx = context()
        with pytest.raises(SinkUnavailable, match=f"{directory} cannot be written: .* Nothing is lost"):
            await write_to(ctx, directory)
        await ctx._attempt.fail()


async def test_full_disk_rolls_the_batch_back_and_the_next_attempt_continues(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    await fill(database, 45)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    first = context("run")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, limits[1]))
    try:
        with pytest.raises(SinkUnavailable, match="File too large"):
            await write_to(first, tmp_path, row_bytes=3 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await first._attempt.fail()
    await first._attempt.close()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]  # nothing is torn
    await write_to(context("run"), tmp_path)
    assert read_export(tmp_path)[1] == list(range(1, 46))


async def test_directory_of_another_run_is_refused(context: MakeContext, database: Database, tmp_path: Path) -> None:
    await fill(database, 45)
    await write_to(context("run"), tmp_path)
    other = context("other")
    with pytest.raises(UsageError, match=r"holds the manifest of run run: give each run a directory of its own"):
        await write_to(other, tmp_path)
    await other._attempt.fail()
    assert read_export(tmp_path)[1] == list(range(1, 46))


async def test_committed_part_that_has_gone_is_an_error(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    await fill(database, 45)
    ctx = context("run")
    with pytest.raises(SinkUnavailable, match=r"misses 1 committed parts, such as .* --from-start"):
        async with JsonLinesParts(ctx, tmp_path) as parts:
            async for batch in ctx.stream(select(Author.id, Author.name).order_by(Author.id), size=10):
                name = await parts.write(batch)
                if batch.number == 2:
                    (tmp_path / str(name)).unlink()
    await ctx._attempt.fail()


async def test_object_store_is_written_like_a_directory(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    import fsspec

    await fill(database, 45)
    ctx = context("run")
    async with JsonLinesParts(ctx, "memory://bucket/export") as parts:
        async for batch in ctx.stream(select(Author.id, Author.name).order_by(Author.id), size=10):
            await parts.write(batch)
    await ctx._attempt.succeed()
    files = fsspec.filesystem("memory")
    files.get("/bucket/export/*", str(tmp_path) + "/")
    assert read_export(tmp_path)[1] == list(range(1, 46))
    files.rm("/bucket", recursive=True)


@job
async def forget_to_await_write(ctx: JobContext, directory: str) -> int:
    async with CsvParts(ctx, directory) as parts:
        async for batch in walk(ctx, "chunks"):
            parts.write(batch)
    return ctx.rows_done


async def test_part_whose_write_is_not_awaited_is_an_error(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    await fill(database)
    with pytest.raises(UsageError, match=r"parts\.write\(\) was called without `await`"):
        await JobRunner(database, settings)(forget_to_await_write, str(tmp_path / "out"))


@pytest.mark.parametrize("loop", ["chunks", "stream"])
async def test_a_sink_that_is_opened_in_a_loop_is_refused_and_nothing_is_lost(
    context: MakeContext, database: Database, tmp_path: Path, loop: str
) -> None:
    await fill(database, 20)
    ctx = context()
    with pytest.raises(UsageError, match="JsonLinesParts: open the sink before the loop"):
        async for batch in walk(ctx, loop):
            await batch.bulk.update(Author, [{"id": row.id, "name": "written"} for row in batch])
            async with JsonLinesParts(ctx, tmp_path / "export") as parts:
                await parts.write(batch)
    await ctx._attempt.fail()
    async with database.session() as session:
        assert (await session.scalars(select(Author.name).where(Author.name == "written"))).all() == []
        assert (await session.execute(text("SELECT rows FROM worker.step"))).scalars().all() == [0]
