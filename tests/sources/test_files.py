"""Lines, JSON and CSV: each row once over restarts and kills, bad rows by line, and files that have changed."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from sqlalchemy import select

from tests.models import Author
from tests.sources.rows import UserRow
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import CursorMismatch, InvalidRow, SourceUnavailable, UnsupportedStatement
from worker.ledger import Ledger
from worker.sources import CsvFile, JsonLines, TextLines
from worker.sources.line_reader import BLOCK_BYTES, RollingDigest
from worker.testing.runner import JobRunner

ROWS = 47
SKIPPED_FRAME = b"\x52\x2a\x4d\x18\x04\0\0\0size"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "members": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    # The first frame holds no data, as in the files of pzstd.
    "frames": lambda data: SKIPPED_FRAME + zstandard.compress(data[:100]) + zstandard.compress(data[100:]),
}


def name(number: int) -> str:
    """Return a name with everything that a CSV file can hold."""
    return ["plain", "two\nlines", 'a "quote"', "comma, semicolon; tab\t", "ä€😀ऊĊ", "", "cr\r\nlf"][number % 7] + str(
        number
    )


def csv_text(delimiter: str = ",") -> str:
    def quoted(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    rows = [f"{number}{delimiter}{quoted(name(number))}" for number in range(1, ROWS + 1)]
    return "\r\n".join([f"id{delimiter}name", *rows]) + "\r\n"


def json_text() -> str:
    return "\n".join(json.dumps({"id": n, "name": name(n)}, ensure_ascii=False) for n in range(1, ROWS + 1))


async def read(ctx: JobContext, source: Any, *, stop_after: int | None = None, size: int = 5) -> list[Any]:
    """Read rows; die in a batch."""
    found: list[Any] = []
    async for batch in ctx.walk(source, size=size, name="rows"):
        if batch.number == stop_after:
            raise RuntimeError("died")
        found += batch
    await ctx._attempt.succeed()
    return found


async def read_over_restarts(context: MakeContext, make: Callable[[], Any]) -> list[Any]:
    """Read rows in attempts of one batch each."""
    found: list[Any] = []
    for number in range(2, 100):
        ctx = context("run", max_attempts=1000)
        try:
            async for batch in ctx.walk(make(), size=5, name="rows"):
                if batch.number == number:
                    raise RuntimeError("died")
                found += batch
            await ctx._attempt.succeed()
        except RuntimeError:
            await ctx._attempt.fail()
            await ctx._attempt.close()
            continue
        break
    return found


async def begin(context: MakeContext, make: Callable[[], Any], *, size: int = 5) -> None:
    """Commit one batch, and die in the second."""
    ctx = context("run")
    with pytest.raises(RuntimeError, match="died"):
        await read(ctx, make(), stop_after=2, size=size)
    await ctx._attempt.fail()
    await ctx._attempt.close()


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gb18030"]
FORMS = [*(("utf-8", each) for each in COMPRESSORS), *((each, "plain") for each in ENCODINGS[1:]), ("utf-16", "gzip")]


@pytest.mark.parametrize(
    ("kind", "encoding", "compression"),
    [
        # Half of them in the short form: each encoding and each compression once.
        pytest.param(kind, *form, marks=[pytest.mark.long] if (place + (kind == "json")) % 2 else [])
        for place, form in enumerate(FORMS)
        for kind in ("csv", "json")
    ],
)
async def test_each_row_is_read_once_over_restarts_in_every_form(
    context: MakeContext, tmp_path: Path, kind: str, encoding: str, compression: str
) -> None:
    path = tmp_path / "rows"
    text = csv_text(";") if kind == "csv" else json_text()
    path.write_bytes(COMPRESSORS[compression](text.encode(encoding)))

    def make() -> Any:
        if kind == "csv":
            return CsvFile(path, UserRow, delimiter=";", encoding=encoding)
        return JsonLines(path, UserRow, encoding=encoding)

    rows = await read_over_restarts(context, make)
    assert [(row.id, row.name) for row in rows] == [(number, name(number)) for number in range(1, ROWS + 1)]


@pytest.mark.parametrize(
    ("case", "compression"),
    [
        ("csv", "plain"),
        ("lines", "gzip"),
        *(
            pytest.param(case, compression, marks=pytest.mark.long)
            for case, compression in [("csv", "gzip"), ("json", "plain"), ("json", "gzip"), ("lines", "plain")]
        ),
    ],
)
async def test_each_row_is_written_once_over_kills(
    database: Database, settings: Settings, tmp_path: Path, case: str, compression: str
) -> None:
    path = tmp_path / "rows"
    text = {"csv": csv_text, "json": json_text}.get(case, lambda: "")()
    rows = ROWS
    if case == "lines":
        rows = 700
        text = "".join(f"{number}\n" for number in range(1, rows + 1))
    path.write_bytes(COMPRESSORS[compression](text.encode()))
    last = await run_under_kills(settings, "tests.sources.killed", case, str(path), kills=2, seed=1)
    assert last == f"done {rows}"
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == list(range(1, rows + 1))


# --- rows


@dataclass
class Plain:
    id: int
    name: str | None


async def test_csv_rows_have_the_given_form(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name\n\n1,a\n2,\n\n")
    assert await read(context(), CsvFile(path)) == [{"id": "1", "name": "a"}, {"id": "2", "name": ""}]
    assert await read(context(), CsvFile(path, Plain, null="")) == [Plain(1, "a"), Plain(2, None)]
    path.write_text("1|'|'\n")
    source = CsvFile(path, columns=["id", "name"], delimiter="|", quotechar="'")
    assert await read(context(), source) == [{"id": "1", "name": "|"}]
    path.write_text('1|"\n')
    source = CsvFile(path, columns=["id", "name"], delimiter="|", quotechar=None)
    assert await read(context(), source) == [{"id": "1", "name": '"'}]


async def test_json_rows_have_the_given_form(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "name": null}\n\n[2]\n')
    assert await read(context(), JsonLines(path)) == [{"id": 1, "name": None}, [2]]
    path.write_text('{"id": 1, "name": null}')
    assert await read(context(), JsonLines(path, Plain)) == [Plain(1, None)]


async def test_rows_of_a_model_or_a_dataclass_can_be_written(
    context: MakeContext, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name,region,code,seen\n1,a,0,1,0\n2,b,0,2,0\n")
    for kind in (AuthorModel, AuthorData):
        ctx = context()
        async for batch in ctx.walk(CsvFile(path, kind)):
            await batch.bulk.upsert(Author, batch)
        await ctx._attempt.succeed()
        async with database.session() as session:
            assert list(await session.scalars(select(Author.name).order_by(Author.id))) == ["a", "b"]


class AuthorModel(UserRow):
    region: int
    code: str
    seen: int


@dataclass
class AuthorData:
    id: int
    name: str
    region: int
    code: str
    seen: int


async def test_a_column_of_a_csv_file_is_named_once(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,id\n1,2\n")
    with pytest.raises(UnsupportedStatement, match="the header repeats 'id'"):
        await read(context(), CsvFile(path))


# --- bad rows

BAD_CSV = b'id,name\n1,a\nx,b\n3,c\n4\n5,"never closed\n6,f\n7,\xff\n8,"h"h\n9,"i\ni"\n'
BAD_JSON = (
    b'{"id":1,"name":"a"}\n{"id":"x","name":""}\n{"id":3,"name":"c"}\nnull\n{"id":5\n{"id":6,"name":"f"}\n"\xff"\n'
)
BAD = {
    "csv": (BAD_CSV, [1, 3, 6, 9], [3, 5, 6, 8, 9]),
    "json": (BAD_JSON, [1, 3, 6], [2, 4, 5, 7]),
}
PATH: list[Any] = []


@job
async def write_good_rows(ctx: JobContext, kind: str, limit: float, size: int) -> int:
    """Write the rows that can be parsed."""
    source: Any = (CsvFile if kind == "csv" else JsonLines)(PATH[0], UserRow)
    async for batch in ctx.walk(source, size=size, on_error="quarantine", quarantine_limit=limit):
        await batch.bulk.insert(
            Author, [{"id": r.id, "name": r.name, "region": 0, "code": str(r.id), "seen": 0} for r in batch]
        )
    return ctx.rows_done


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_row_is_quarantined_by_its_line(
    database: Database, settings: Settings, tmp_path: Path, kind: str, size: int
) -> None:
    content, good, bad_lines = BAD[kind]
    path = tmp_path / "rows"
    path.write_bytes(content)
    PATH[:] = [path]
    assert await JobRunner(database, settings)(write_good_rows, kind, 10, size) == len(good)
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == good
    rows = sorted(await Ledger(database).quarantine.list_rows(), key=lambda row: row.key)
    assert [row.key[0] for row in rows] == bad_lines
    for row in rows:
        assert f"{path}, line {row.key[0]}: " in row.error
        assert row.row


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_row_ends_the_walk_before_its_batch_without_a_quarantine(
    database: Database, settings: Settings, tmp_path: Path, kind: str
) -> None:
    content, _, bad_lines = BAD[kind]
    path = tmp_path / "rows"
    path.write_bytes(content)
    PATH[:] = [path]
    for limit in (0, 2, 0.2):
        with pytest.raises(Exception, match=f"line {bad_lines[0]}: "):
            await JobRunner(database, settings)(write_good_rows, kind, limit, 100)
    assert await Ledger(database).quarantine.list_rows() == []
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id))) == []


# --- a file that is not as it was


def make_lines(path: Path) -> Callable[[], Any]:
    return lambda: TextLines(path)


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_a_change_in_the_done_part_is_refused(context: MakeContext, tmp_path: Path, compression: str) -> None:
    """Of a file of several blocks: in its first line, in the last done line, and behind the place."""
    path, compress = tmp_path / "lines", COMPRESSORS[compression]
    lines = [f"{number:06}" + "x" * 100 for number in range(30_000)]
    content = "\n".join(lines).encode()
    assert len(content) > 3 * BLOCK_BYTES
    path.write_bytes(compress(content))
    size = 25_000
    await begin(context, make_lines(path), size=size)
    place = len("\n".join(lines[:size]))

    for byte in (0, BLOCK_BYTES + 5, place - 1):
        path.write_bytes(compress(content[:byte] + b"#" + content[byte + 1 :]))
        with pytest.raises(CursorMismatch, match=r"which are done, have changed; .* --from-start"):
            await read(context("run"), TextLines(path))
    path.write_bytes(compress(content[: place - 10]))
    with pytest.raises(CursorMismatch, match=f"has {place - 10} bytes of content, but {place + 1} are done"):
        await read(context("run"), TextLines(path))
    path.write_bytes(compress(content[: place + 1] + b"#" + content[place + 2 :] + b"\nmore"))
    rest = await read(context("run"), TextLines(path), size=10_000)
    assert [line[:6] for line in rest[:1] + rest[-2:]] == ["#25000", "029999", "more"]


async def test_a_restart_reads_only_the_last_block_of_an_unchanged_file(context: MakeContext, tmp_path: Path) -> None:
    """Nothing else is read: a change that keeps size and modification time is not seen, as the page says."""
    path = tmp_path / "lines"
    content = b"".join(b"%0100d\n" % number for number in range(30_000))
    path.write_bytes(content)
    await begin(context, make_lines(path), size=25_000)
    found = path.stat()
    path.write_bytes(b"#" + content[1:])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert len(await read(context("run"), TextLines(path), size=10_000)) == 5_000


def test_rolling_digest_continues_from_its_dump() -> None:
    data = os.urandom(3 * BLOCK_BYTES + 77)
    for place in (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, len(data)):
        whole = RollingDigest()
        whole.update(data[:place])
        again = RollingDigest(whole.dump()[0])
        again.update(data[place - place % BLOCK_BYTES : place])
        assert again.dump() == whole.dump()
        whole.update(data[place:])
        again.update(data[place:])
        assert again.dump() == whole.dump()


@pytest.mark.parametrize("kind", [TextLines, JsonLines, CsvFile])
async def test_a_file_that_cannot_be_read_is_named(context: MakeContext, tmp_path: Path, kind: Any) -> None:
    for path, reason in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "a directory"),
        (Path("/dev/zero"), "regular"),
    ):
        with pytest.raises(SourceUnavailable, match=f"{path} cannot be read: .*{reason}"):
            await read(context(), kind(path))
    path = tmp_path / "rows"
    path.write_text("1\n2\n3\n")
    await begin(context, lambda: kind(path), size=1)
    path.unlink()
    with pytest.raises(SourceUnavailable, match=r"No such file .* its next attempt"):
        await read(context("run"), kind(path))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_a_damaged_or_truncated_archive_is_named(context: MakeContext, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "lines"
    whole = COMPRESSORS[compression](b"".join(b"%d\n" % number for number in range(10_000)))
    path.write_bytes(whole[:-20])
    with pytest.raises(SourceUnavailable, match="ends too early"):
        await read(context(), TextLines(path), size=10_000)
    path.write_bytes(whole[:1_000] + bytes(100) + whole[1_100:])
    with pytest.raises(SourceUnavailable, match="its compressed data is damaged"):
        await read(context(), TextLines(path), size=10_000)


async def test_an_encoding_that_does_not_fit_is_named(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("ä", encoding="utf-16")
    with pytest.raises(UnsupportedStatement, match="encoding='utf-16'"):
        await read(context(), TextLines(path))
    with pytest.raises(UnsupportedStatement, match="encoding 'klingon' is unknown"):
        TextLines(path, encoding="klingon")
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InvalidRow, match="line 2: not utf-8"):
        await read(context(), TextLines(path))


@pytest.mark.long
async def test_a_restart_at_300_mb_takes_below_200_ms(context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write("id,name\n")
        file.writelines(f"{number},{'x' * 90}\n" for number in range(3_100_000))
    first = context("run")
    with pytest.raises(RuntimeError, match="died"):
        await read(first, CsvFile(path), stop_after=5, size=10_000_000)  # batch.max_bytes limits a batch to 64 MB
    await first._attempt.fail()
    await first._attempt.close()
    began = time.perf_counter()
    ctx = context("run")
    async for batch in ctx.walk(CsvFile(path), size=1, name="rows"):
        assert int(batch[0]["id"]) > 2_000_000
        break
    assert time.perf_counter() - began < 0.2
    await ctx._attempt.close()
