"""The values that sinks write, and directories that change between the attempts of a run."""

from __future__ import annotations

import asyncio
import enum
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from tests.support.contexts import MakeContext
from worker.errors import CursorMismatch, UsageError
from worker.sinks import CsvParts, JsonLinesParts, ParquetParts
from worker.sources import CsvFile, Pages


class _Colour(enum.Enum):
    RED = "red"


class _Inner(BaseModel):
    x: int = 3


@dataclass
class _Pair:
    a: int
    colour: _Colour


async def _numbers(cursor: int | None) -> tuple[list[int], int | None]:
    at = cursor or 0
    return [at], at + 1 if at < 3 else None


async def _write(context: MakeContext, kind: Any, directory: Path, row: dict[str, Any]) -> Path:
    ctx = context()
    async with kind(ctx, directory) as parts:
        async for batch in ctx.walk(Pages(_numbers, int)):
            if batch.number == 1:
                await parts.write(batch, [row])
    return next(path for path in directory.iterdir() if path.name != "manifest.json")


ROW = {
    "colour": _Colour.RED, "data": b"\xff\x00", "time": timedelta(days=1), "inner": _Inner(),
    "pair": _Pair(1, _Colour.RED), "number": float("inf"), "numbers": {1},
}  # fmt: skip


async def test_csv_and_json_write_each_value_in_the_same_form(context: MakeContext, tmp_path: Path) -> None:
    lines = (await _write(context, JsonLinesParts, tmp_path / "json", ROW)).read_text()
    found = json.loads(lines, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {
        "colour": "red", "data": "_wA=", "time": "P1D", "inner": {"x": 3}, "pair": {"a": 1, "colour": "red"},
        "number": "Infinity", "numbers": [1],
    }  # fmt: skip
    path = await _write(context, CsvParts, tmp_path / "csv", ROW)
    [row] = [row async for batch in context().walk(CsvFile(path)) for row in batch]
    for name in ("inner", "pair", "numbers"):
        row[name] = json.loads(row[name])
    assert row == {**found, "number": "inf"}


async def test_parquet_writes_enums_models_and_dataclasses(context: MakeContext, tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "numbers"}
    [found] = pq.read_table(await _write(context, ParquetParts, tmp_path, row)).to_pylist()
    assert found == {**row, "colour": "red", "inner": {"x": 3}, "pair": {"a": 1, "colour": "red"}}


async def test_our_csv_source_reads_a_carriage_return_that_our_sink_wrote(context: MakeContext, tmp_path: Path) -> None:
    texts = {"a": "x\ry", "b": "x\r", "c": "x\r\ny", "d": 'q"\n'}
    path = await _write(context, CsvParts, tmp_path, texts)
    assert path.read_bytes().startswith(b"a,b,c,d\n")
    assert [row async for batch in context().walk(CsvFile(path)) for row in batch] == [texts]


@pytest.mark.parametrize("kind", [CsvParts, JsonLinesParts])
async def test_a_text_that_no_file_can_hold_is_an_error_of_the_job(
    context: MakeContext, tmp_path: Path, kind: Any
) -> None:
    with pytest.raises(UsageError, match="a row cannot be written"):
        await _write(context, kind, tmp_path, {"a": "\ud800"})


async def test_a_sink_that_is_not_open_is_an_error(context: MakeContext, tmp_path: Path) -> None:
    ctx = context()
    with pytest.raises(UsageError, match="CsvParts is not open"):
        async for batch in ctx.walk(Pages(_numbers, int)):
            await CsvParts(ctx, tmp_path).write(batch, [{"a": 1}])


async def _attempt(context: MakeContext, directory: Path, last: int) -> None:
    ctx = context("run")
    try:
        async with JsonLinesParts(ctx, directory) as parts:
            async for batch in ctx.walk(Pages(_numbers, int)):
                await parts.write(batch, [{"a": each} for each in batch])
                if batch.number == last:
                    raise RuntimeError("died")
    except Exception:
        await ctx._attempt.fail()
        raise
    finally:
        await ctx._attempt.close()


async def test_a_directory_that_changes_between_attempts_is_an_error(context: MakeContext, tmp_path: Path) -> None:
    """The manifest of the other directory would be complete without the parts of the first."""
    with pytest.raises(RuntimeError, match="died"):
        await _attempt(context, tmp_path / "monday", 3)
    with pytest.raises(CursorMismatch, match=r"tuesday: .*has written parts .* to .*monday"):
        await _attempt(context, tmp_path / "tuesday", 9)
    await _attempt(context, tmp_path / "monday", 9)
    manifest = json.loads((tmp_path / "monday" / "manifest.json").read_text())
    assert (manifest["complete"], manifest["rows"]) == (True, 4)


async def test_of_two_runs_that_begin_at_once_one_claims_the_directory(context: MakeContext, tmp_path: Path) -> None:
    async def claim(run_id: str) -> str:
        sink = CsvParts(context(run_id), tmp_path)
        await asyncio.to_thread(sink._claim)
        return run_id

    for number in range(20):
        found = await asyncio.gather(*[claim(f"run-{each}") for each in range(4)], return_exceptions=True)
        owner = json.loads((tmp_path / "manifest.json").read_text())["run"]
        assert [each for each in found if not isinstance(each, UsageError)] == [owner], number
        assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
        (tmp_path / "manifest.json").unlink()
