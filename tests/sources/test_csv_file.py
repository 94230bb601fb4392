"""CSV files of odd forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, field_validator

from tests.support.contexts import MakeContext
from worker.errors import InvalidRow, UnsupportedStatement
from worker.sources import CsvFile, JsonLines, ParquetFile, TextLines


@pytest.mark.parametrize("data", [b"", b"id,name", b"id,name\r\n", b"\xef\xbb\xbfid,name\n\n", b"\n\n"], ids=repr)
async def test_a_file_without_rows_is_walked_to_its_end(context: MakeContext, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    assert [batch async for batch in context().walk(CsvFile(path))] == []


async def test_a_field_can_be_longer_than_128_kib(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"id,text\n1,{'x' * 300_000}\n2,y\n")
    rows = [row async for batch in context().walk(CsvFile(path)) for row in batch]
    assert [len(row["text"]) for row in rows] == [300_000, 1]


async def test_lines_that_end_with_a_carriage_return_alone_are_refused(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,name\r1,a\r2,b\r")
    with pytest.raises(UnsupportedStatement, match=r"line 1: .*a carriage return outside of quotes"):
        async for _ in context().walk(CsvFile(path)):
            pass


async def test_empty_lines_before_the_header_are_skipped(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n\nid,name\n1,a\nx\n")
    with pytest.raises(InvalidRow, match="line 5: 1 fields instead of 2"):
        async for _ in context().walk(CsvFile(path), size=1):
            pass
    assert [row async for batch in context().walk(CsvFile(path), size=1, on_error="quarantine", quarantine_limit=1)
            for row in batch] == [{"id": "1", "name": "a"}]  # fmt: skip


@pytest.mark.parametrize("columns", [["id", "id"], "id", [], [1]], ids=repr)
def test_columns_without_one_name_each_are_refused(columns: Any) -> None:
    with pytest.raises(UnsupportedStatement, match="columns="):
        CsvFile("rows.csv", columns=columns)


@pytest.mark.parametrize("options", [{"encoding": "rot13"}, {"encoding": "base64"}, {"compression": "bz2"}], ids=repr)
def test_an_encoding_or_compression_that_no_attempt_can_read_is_refused(options: Any) -> None:
    with pytest.raises(UnsupportedStatement, match=next(iter(options.values()))):
        TextLines("rows.txt", **options)


class _Place(BaseModel):
    id: int
    side: str

    @field_validator("side")
    @classmethod
    def expand(cls, side: str) -> str:
        return {"n": "north"}[side]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_a_row_whose_validator_raises_any_error_is_named_and_quarantined(
    context: MakeContext, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"rows.{form}"
    if form == "csv":
        path.write_text("id,side\n1,n\n2,x\n3,n\n")
    elif form == "jsonl":
        path.write_text("".join(f'{{"id": {n}, "side": "{side}"}}\n' for n, side in ((1, "n"), (2, "x"), (3, "n"))))
    else:
        pq.write_table(pa.table({"id": [1, 2, 3], "side": ["n", "x", "n"]}), path)
    make: Any = {"csv": CsvFile, "jsonl": JsonLines, "parquet": ParquetFile}[form]
    with pytest.raises(InvalidRow, match=r"(line|row) \d.*KeyError: 'x'"):
        async for _ in context().walk(make(path, _Place)):
            pass
    kept = [row.id async for batch in context().walk(make(path, _Place), on_error="quarantine", quarantine_limit=1)
            for row in batch]  # fmt: skip
    assert kept == [1, 3]
