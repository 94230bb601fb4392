"""A read that fails once, and source objects that are walked again: no row is left out, and none comes twice."""

from __future__ import annotations

import gzip
import io
import json
import random
import uuid
from collections.abc import AsyncIterator, Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sources.flaky import READABLE, FlakyFiles
from tests.support.contexts import MakeContext
from worker import JobContext, job
from worker.batch.source import Bounds, Page
from worker.errors import CursorMismatch
from worker.sources import AsyncItems, CsvFile, JsonLines, Pages, ParquetFile, TextLines
from worker.testing.runner import JobRunner

ROWS = 3_000


def _parquet(rows: int, group: int) -> bytes:
    file = io.BytesIO()
    noise = [str(random.random()) for _ in range(rows)]
    table = pa.table({"id": list(range(rows)), "noise": noise})
    pq.write_table(table, file, row_group_size=group, compression="none")
    return file.getvalue()


def _lines() -> bytes:
    return "".join(f"{n} {random.random()}\n" for n in range(ROWS)).encode()


#: Of each source: the content of its file, how it is made, and the number of a row.
FILES: dict[str, tuple[Callable[[], bytes], Any, Callable[[Any], int]]] = {
    "lines": (_lines, TextLines, lambda row: int(row.split()[0])),
    "gzip": (lambda: gzip.compress(_lines()), TextLines, lambda row: int(row.split()[0])),
    "csv": (lambda: b"id noise\n" + _lines(), lambda path: CsvFile(path, delimiter=" "), lambda row: int(row["id"])),
    "json": (
        lambda: "".join(json.dumps({"id": n, "noise": "x" * 20}) + "\n" for n in range(ROWS)).encode(),
        JsonLines,
        lambda row: int(row["id"]),
    ),
    "parquet": (lambda: _parquet(ROWS, 200), ParquetFile, lambda row: int(row["id"])),
}


@pytest.mark.parametrize("kind", FILES)
async def test_a_file_whose_read_fails_once_is_read_to_its_end(context: MakeContext, kind: str) -> None:
    content, make, number = FILES[kind]
    FlakyFiles.data = content()
    assert len(FlakyFiles.data) > READABLE
    ctx, seen = context(), list[int]()
    async for batch in ctx.walk(make("flaky://file"), size=100):
        if batch.number == 2:
            FlakyFiles.failures = 2  # the repetition fails, too
        seen += map(number, batch)
    assert FlakyFiles.failures == 0
    assert seen == list(range(ROWS))


@pytest.mark.parametrize("error", [TimeoutError("no answer"), ConnectionResetError("reset"), OSError("late")])
async def test_items_whose_iterator_fails_once_are_read_to_their_end(run_job: JobRunner, error: Exception) -> None:
    failures, run_id = [error], uuid.uuid4().hex

    async def items(cursor: int | None) -> AsyncIterator[tuple[int, int]]:
        for n in range((cursor or 0) + 1, 101):
            if n == 35 and failures:
                raise failures.pop()
            yield n, n

    seen = list[int]()

    @job
    async def read(ctx: JobContext) -> int:
        async for batch in ctx.walk(AsyncItems(items, int), size=10):
            seen.extend(batch)
        return ctx.rows_done

    if type(error) is OSError:  # it is no error that passes by itself: the next attempt continues
        with pytest.raises(OSError, match="late"):
            await run_job.attempt(read, run_id)
    assert await run_job.attempt(read, run_id) == 100
    assert (failures, seen) == ([], list(range(1, 101)))


class Numbers:
    """A source of a user, who keeps an iterator between two pages."""

    kind = "numbers"
    fingerprint = "numbers"

    def __init__(self) -> None:
        self.failures = 1
        self.opened: list[Any] = []
        self.closed = 0

    def _read(self, begin: int) -> Any:
        for n in range(begin, 50):
            if n == 25 and self.failures:
                self.failures -= 1
                raise ConnectionError("the service is away")
            yield n

    async def open(self, step: Any) -> Bounds:
        self.opened.append(step.cursor)
        self._numbers = self._read(step.cursor or 0)
        return Bounds()

    async def fetch(self, transaction: Any, cursor: Any, size: int) -> Page[int] | None:
        rows = list(islice(self._numbers, size))
        return Page(rows, rows[-1] + 1, last_key=[rows[-1]]) if rows else None

    async def close(self) -> None:
        self.closed += 1


async def test_a_source_that_keeps_an_iterator_is_opened_again_at_the_cursor(context: MakeContext) -> None:
    source, ctx, seen = Numbers(), context(), list[int]()
    async for batch in ctx.walk(source, size=10):
        seen += batch
    assert seen == list(range(50))
    assert (source.opened, source.closed) == ([None, 20], 2)


async def _pages(cursor: int | None) -> tuple[list[int], int | None]:
    begin = cursor or 0
    return list(range(begin, begin + 4)), begin + 4 if begin < 8 else None


@pytest.mark.parametrize("kind", ["parquet", "pages"])
async def test_one_source_object_can_be_walked_again(
    run_job: JobRunner, context: MakeContext, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(_parquet(12, 5))
    source: Any = ParquetFile(path) if kind == "parquet" else Pages(_pages, int)
    for _ in range(2):
        found = [row async for batch in context().walk(source, size=5) for row in batch]
        assert len(found) == 12
    failures, run_id = [ValueError("once")], uuid.uuid4().hex
    seen = list[Any]()

    @job
    async def load(ctx: JobContext) -> int:
        async for batch in ctx.walk(source, size=5):
            if failures:
                raise failures.pop()
            seen.extend(batch)
        return ctx.rows_done

    with pytest.raises(ValueError, match="once"):
        await run_job.attempt(load, run_id)
    assert await run_job.attempt(load, run_id) == 12
    assert len(seen) == 12


@pytest.mark.parametrize("change", ["truncated", "rewritten"])
async def test_a_file_that_changes_while_it_is_read_is_no_success(
    context: MakeContext, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"{n:08}\n" for n in range(100_000)))
    ctx = context()
    with pytest.raises(CursorMismatch, match=r"truncated|have changed") as found:
        async for batch in ctx.walk(TextLines(path), size=1_000):
            if batch.number == 3:
                content = path.read_bytes()
                path.write_bytes(b"" if change == "truncated" else b"#" + content[1:])
    assert "--from-start" in str(found.value)


async def test_a_file_that_grows_is_read_to_its_end(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"{n:08}\n" for n in range(50_000)))
    ctx, seen = context(), list[int]()
    async for batch in ctx.walk(TextLines(path), size=1_000):
        if batch.number == 3:
            with path.open("a") as file:
                file.write("".join(f"{n:08}\n" for n in range(50_000, 50_010)))
        seen += map(int, batch)
    assert seen == list(range(50_010))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("is_resumed", [False, True])
async def test_a_last_line_without_its_end_may_not_grow(
    run_job: JobRunner, tmp_path: Path, encoding: str, is_resumed: bool
) -> None:
    path, codec = tmp_path / "lines", "utf-16-le" if encoding == "utf-16" else encoding
    mode, run_id = ["whole"], uuid.uuid4().hex

    @job
    async def read(ctx: JobContext) -> list[str]:
        found: list[str] = []
        async for batch in ctx.walk(TextLines(path, encoding=encoding), size=1):
            found += batch
            if batch.number == 2 and mode[0] != "whole":
                with path.open("ab") as file:
                    file.write(({"line": "00\n3\n", "end": "\n3\n"}[mode[0]]).encode(codec))
            if batch.number == 3 and is_resumed and len(found) > 1:
                raise OSError("killed")
        return found

    path.write_text("1\n20", encoding=encoding)
    assert await run_job(read) == ["1", "20"]
    mode[0] = "end"  # a writer that begins each line with the end of the one before
    if is_resumed:
        with pytest.raises(OSError, match="killed"):
            await run_job.attempt(read, run_id)
        assert await run_job.attempt(read, run_id) == ["3"]
    else:
        assert await run_job(read) == ["1", "20", "3"]
    path.write_text("1\n20", encoding=encoding)
    mode[0] = "line"
    with pytest.raises(CursorMismatch, match=r"line 2: its end was written after it was read"):
        await run_job(read)
