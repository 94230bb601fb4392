"""CSV files of odd forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.contexts import MakeContext
from worker.errors import UnsupportedStatement
from worker.sources import CsvFile


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
