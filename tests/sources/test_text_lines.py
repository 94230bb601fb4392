"""`ctx.lines`: reads a file by lines, over restarts; a truncated or changed file is rejected."""

from __future__ import annotations

import encodings.aliases
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.models import Author
from tests.support.contexts import MakeContext
from worker import JobContext
from worker.db.engine import Database
from worker.errors import CursorMismatch, InvalidRow, SourceUnavailable, UnsupportedStatement
from worker.sources import TextLines
from worker.sources.line_reader import LineReader, find_codec
from worker.sources.location import Location


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of fifty lines, of which the last has no end."""
    found = tmp_path / "authors.csv"
    found.write_bytes("\r\n".join(f"{n},ä{n}" for n in range(1, 51)).encode())
    return found


async def load(ctx: JobContext, path: Path, *, die_in: int | None = None) -> list[int]:
    sizes = []
    async for batch in ctx.lines(path, size=20):
        rows = [line.split(",") for line in batch]
        await batch.bulk.insert(
            Author, [{"id": int(n), "name": name, "region": 0, "code": n, "seen": 0} for n, name in rows]
        )
        if batch.number == die_in:
            raise RuntimeError("died")
        sizes.append(len(batch))
    await ctx._attempt.succeed()
    return sizes


async def begun(context: MakeContext, path: Path) -> None:
    """Commit one batch of the run, and die in the second."""
    first = context("run")
    with pytest.raises(RuntimeError):
        await load(first, path, die_in=2)
    await first._attempt.fail()
    await first._attempt.close()


async def test_each_line_is_done_once_over_a_restart(context: MakeContext, database: Database, path: Path) -> None:
    await begun(context, path)
    path.write_bytes(path.read_bytes() + b"\r\n51,new")  # it may grow
    assert await load(context("run"), path) == [20, 11]
    async with database.session() as session:
        found = (await session.execute(select(Author.id, Author.name).order_by(Author.id))).all()
    assert [tuple(row) for row in found] == [*((n, f"ä{n}") for n in range(1, 51)), (51, "new")]


async def test_a_file_that_was_cut_off_or_changed_is_refused(context: MakeContext, path: Path) -> None:
    await begun(context, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    with pytest.raises(CursorMismatch, match=r"was truncated; .* --from-start"):
        await load(context("run"), path)
    path.write_bytes(whole.replace(b"7,", b"8,"))
    with pytest.raises(CursorMismatch, match="which are done, have changed"):
        await load(context("run"), path)
    path.write_bytes(whole)
    assert await load(context("run"), path) == [20, 10]


async def test_a_file_that_cannot_be_read_is_refused(context: MakeContext, path: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="cannot be read: No such file"):
        await load(context(), tmp_path / "none.csv")
    path.write_bytes(b"1,a\n2,\xff\n")
    with pytest.raises(InvalidRow, match=r"authors\.csv, line 2: not utf-8"):
        await load(context(), path)


async def test_an_empty_file_has_no_lines(context: MakeContext, path: Path) -> None:
    path.write_bytes(b"")
    assert await load(context(), path) == []


@pytest.mark.parametrize(
    "encoding", ["hex", "rot13", "undefined", "utf-8\0", "cp037", "cp500", "idna", "unicode_escape"]
)
def test_an_encoding_whose_lines_cannot_be_found_is_refused(path: Path, encoding: str) -> None:
    with pytest.raises(UnsupportedStatement, match=r"is unknown|has no line feed at the end of a line"):
        TextLines(path, encoding=encoding)


def test_lines_of_each_text_encoding_are_split_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    refused, wrong = [], []
    for encoding in sorted(set(encodings.aliases.aliases.values()) - {"mbcs"}):
        try:
            source = TextLines(path, encoding=encoding)
        except UnsupportedStatement:
            refused.append(encoding)
            continue
        path.write_bytes("one\r\ntwo words\n\nlast".encode(encoding))
        reader = LineReader(Location(path), find_codec(encoding), "infer")
        found = [record.value for record in source._read_records(reader)]
        reader.close()
        wrong += [] if found == ["one", "two words", "", "last"] else [(encoding, found)]
    assert wrong == []
    assert {"utf_8", "utf_16", "utf_32", "latin_1", "cp1252", "shift_jis", "gb18030"}.isdisjoint(refused)
