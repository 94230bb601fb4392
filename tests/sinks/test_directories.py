"""Directories of sinks: foreign files, links, replaced ones, torn manifests, long names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.models import Author
from tests.sinks.test_parts import fill, read_export, write_to
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.errors import SinkUnavailable, UsageError
from worker.sinks import JsonLinesParts

ROWS = list(range(1, 46))
FOREIGN = ["sales-20261128-deadbeefcafe.csv", "notes.txt", "stream-00000001-0123456789ab.jsonl"]


async def break_off(context: MakeContext, directory: Any, name: str = "rows") -> None:
    """Commit a batch, write the part of another one, and die."""
    ctx = context("run")
    with pytest.raises(ZeroDivisionError):
        async with JsonLinesParts(ctx, directory) as parts:
            rows = select(Author.id, Author.name).order_by(Author.id)
            async for batch in ctx.stream(rows, size=10, name=name):
                await parts.write(batch)
                if batch.number == 2:
                    raise ZeroDivisionError
    await ctx._attempt.fail()
    await ctx._attempt.close()


async def go_on(context: MakeContext, directory: Any, name: str = "rows") -> None:
    """Write the rest."""
    ctx = context("run")
    async with JsonLinesParts(ctx, directory) as parts:
        rows = select(Author.id, Author.name).order_by(Author.id)
        async for batch in ctx.stream(rows, size=10, name=name):
            await parts.write(batch)
    await ctx._attempt.succeed()


async def test_files_of_others_are_kept(context: MakeContext, database: Database, tmp_path: Path) -> None:
    await fill(database, 45)
    for name in FOREIGN:
        (tmp_path / name).write_text("foreign")
    (tmp_path / "old-20261128-deadbeefcafe.d").mkdir()
    await break_off(context, tmp_path)
    await go_on(context, tmp_path)
    assert [(tmp_path / name).read_text() for name in FOREIGN] == ["foreign"] * 3
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    parts = {part["name"] for part in manifest["parts"]}
    assert manifest["complete"] and manifest["rows"] == 45 and len(parts) == 5
    assert {path.name for path in tmp_path.iterdir()} == {
        *parts,
        *FOREIGN,
        "manifest.json",
        "old-20261128-deadbeefcafe.d",
    }


async def test_a_link_to_a_directory_is_that_directory(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    await fill(database, 45)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    await break_off(context, tmp_path / "link")
    await go_on(context, tmp_path / "link")
    assert read_export(tmp_path / "real")[1] == ROWS
    other = context("other")
    with pytest.raises(UsageError, match="holds the manifest of run run"):
        await write_to(other, tmp_path / "real")
    await other._attempt.fail()


@pytest.mark.parametrize("put_back", ["an empty directory", "nothing", "a file"])
async def test_a_directory_that_was_replaced_is_an_error_and_no_export(
    context: MakeContext, database: Database, tmp_path: Path, put_back: str
) -> None:
    await fill(database, 45)
    place = tmp_path / "out"
    await break_off(context, place)
    shutil.rmtree(place)
    if put_back == "a file":
        place.write_text("")
    elif put_back == "an empty directory":
        place.mkdir()
    ctx = context("run")
    with pytest.raises(SinkUnavailable, match=r"misses 1 committed parts|cannot be written"):
        await write_to(ctx, place)
    await ctx._attempt.fail()


@pytest.mark.parametrize("torn", [0, 1], ids=["behind the run", "nothing of the run"])
async def test_a_torn_manifest_of_an_object_store_is_written_again(
    context: MakeContext, database: Database, tmp_path: Path, torn: int
) -> None:
    import fsspec

    await fill(database, 45)
    files = fsspec.filesystem("memory")
    try:
        await break_off(context, "memory://torn/export")
        text = files.cat_file("/torn/export/manifest.json")
        files.pipe_file("/torn/export/manifest.json", text[:5] if torn else text[: text.index(b'"complete"')])
        if torn:
            with pytest.raises(UsageError, match="holds the manifest of run that cannot be read"):
                await go_on(context, "memory://torn/export")
            return
        await go_on(context, "memory://torn/export")
        files.get("/torn/export/*", str(tmp_path) + "/")
        assert read_export(tmp_path)[1] == ROWS
    finally:
        files.rm("/torn", recursive=True)


async def test_a_url_of_a_local_directory_is_that_directory(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    await fill(database, 45)
    place = tmp_path / "two words"
    await break_off(context, f"file://{tmp_path}/two words")
    assert [path.name for path in place.iterdir() if path.name.startswith(".part")] == []
    await go_on(context, f"file://{tmp_path}/two words")
    assert read_export(place)[1] == ROWS


async def test_a_step_with_a_long_name_has_parts(context: MakeContext, database: Database, tmp_path: Path) -> None:
    await fill(database, 45)
    await break_off(context, tmp_path, name="é" * 90 + "x" * 110)
    await go_on(context, tmp_path, name="é" * 90 + "x" * 110)
    assert read_export(tmp_path)[1] == ROWS
