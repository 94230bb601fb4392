"""`CsvFile`: the rows of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from pydantic import TypeAdapter

from worker.errors import InvalidRow, UnsupportedStatement
from worker.sources.decompression import Compression
from worker.sources.file_source import FileSource, Record, convert, describe_problem
from worker.sources.line_reader import MAX_LINE_BYTES, LineReader

T = TypeVar("T")


class CsvFile(FileSource[T], Generic[T]):
    """The rows of a CSV file: `ctx.walk(CsvFile("users.csv", UserRow), size=1_000)`.

    A quoted field may hold line breaks. Empty lines are skipped. A row with another number of fields than columns is
    invalid, as is a row that `row_type` does not accept. If a quote is never closed, the line with it is invalid, and
    the next line is read as a row. See `TextLines` for restarts and errors.

    Args:
        path: A path, or a URL.
        row_type: A pydantic model, a dataclass, or another type that pydantic validates from a dict of texts. Default:
            dicts of texts.
        columns: The names of the columns, for a file without a header. Default: the first row names them.
        delimiter: The character between two fields.
        quotechar: The character around a field that holds delimiters or line breaks; None for none.
        null: The text that stands for None, such as "" or "\\\\N"; None for none.
        encoding: The encoding of the file.
        compression: "gzip", "zstd" or None; "infer" finds it by the first bytes.
        storage_options: Options for fsspec.

    Raises:
        UnsupportedStatement: The header, or `columns`, is invalid or repeats a name.
    """

    kind = "csv"

    @overload
    def __init__(
        self: CsvFile[dict[str, Any]],
        path: str | Path,
        row_type: None = None,
        *,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        quotechar: str | None = '"',
        null: str | None = None,
        encoding: str = "utf-8",
        compression: Compression = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        path: str | Path,
        row_type: type[T],
        *,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        quotechar: str | None = '"',
        null: str | None = None,
        encoding: str = "utf-8",
        compression: Compression = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None: ...
    def __init__(
        self,
        path: str | Path,
        row_type: type[T] | None = None,
        *,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        quotechar: str | None = '"',
        null: str | None = None,
        encoding: str = "utf-8",
        compression: Compression = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if columns is not None:
            check_columns(columns)
        form = "" if (delimiter, quotechar) == (",", '"') else f" delimiter={delimiter!r} quotechar={quotechar!r}"
        form += "" if columns is None else f" columns={','.join(columns)}"
        super().__init__(path, encoding=encoding, compression=compression, storage_options=storage_options, form=form)
        quoting = csv.QUOTE_NONE if quotechar is None else csv.QUOTE_MINIMAL
        self._format: dict[str, Any] = {
            "delimiter": delimiter,
            "quotechar": quotechar,
            "quoting": quoting,
            "strict": True,
        }
        try:
            csv.reader((), **self._format)
        except (TypeError, ValueError) as error:
            raise UnsupportedStatement(f"csv: {error}") from error
        # The reader's own limit of 128 KiB, one for the process, is below that of a line.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        self._given_columns = None if columns is None else list(columns)
        self._columns: list[str] = []
        self._null = null
        self._validate: Callable[[Any], Any] | None = (
            None if row_type is None else TypeAdapter(row_type).validate_python
        )

    def _read_head(self, reader: LineReader) -> None:
        if self._given_columns is not None:
            self._columns = self._given_columns
            return
        name = self._location.name
        lines = _RecordLines(reader)
        try:
            # Empty lines are skipped, also before the header.
            self._columns = next((fields for fields in csv.reader(lines, **self._format) if fields), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise UnsupportedStatement(f"{name}, line 1: the header is invalid: {_describe(error)}") from error
        repeated = sorted({column for column in self._columns if self._columns.count(column) > 1})
        if repeated:
            raise UnsupportedStatement(
                f"{name}: the header repeats {', '.join(map(repr, repeated))}: set columns=[...]"
            )
        reader.accept(lines.taken)

    def _read_records(self, reader: LineReader) -> Iterator[Record[T]]:
        lines = _RecordLines(reader)
        rows = csv.reader(lines, **self._format)
        while True:
            lines.restart()
            line, byte = reader.line, reader.byte
            try:
                fields = next(rows)
                value = self._make_row(fields) if fields else None
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                # The next record may begin on any of the lines that were taken for a part of this one.
                reader.give_back(lines.taken[1:])
                reader.accept(lines.taken[:1])
                yield Record(line, byte, None, _describe(error), lines.taken[0])
            except InvalidRow as error:
                reader.accept(lines.taken)
                yield Record(line, byte, None, str(error), b"".join(lines.taken))
            else:
                reader.accept(lines.taken)
                if fields:
                    yield Record(line, byte, value)

    def _make_row(self, fields: list[str]) -> Any:
        if len(fields) != len(self._columns):
            raise InvalidRow(f"{len(fields)} fields instead of {len(self._columns)}")
        row: dict[str, Any] = dict(zip(self._columns, fields, strict=True))
        if self._null is not None:
            row = {name: None if value == self._null else value for name, value in row.items()}
        return row if self._validate is None else convert(self._validate, row)


def _describe(error: csv.Error | UnicodeDecodeError) -> str:
    if str(error).startswith("new-line character"):
        return "a carriage return outside of quotes: lines must end with a line feed, or with both"
    return describe_problem(error)


def check_columns(columns: Any) -> None:
    """Raise `UnsupportedStatement` unless an argument lists the names of the columns of a CSV file, each once."""
    if isinstance(columns, str) or not columns or any(not isinstance(name, str) for name in columns):
        raise UnsupportedStatement(f"csv: columns={columns!r}: give a list of the columns' names")
    repeated = sorted({name for name in columns if list(columns).count(name) > 1})
    if repeated:
        raise UnsupportedStatement(f"csv: columns= repeats {', '.join(map(repr, repeated))}: give each column a name")


class _RecordLines:
    """The lines of one record, decoded. It can be read on after an error, which a generator cannot.

    Attributes:
        taken: The raw lines of the record.
    """

    def __init__(self, reader: LineReader) -> None:
        self._reader = reader
        self.taken: list[bytes] = []
        self._bytes = 0

    def restart(self) -> None:
        """Begin a record."""
        self.taken, self._bytes = [], 0

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        raw = self._reader.read_line()
        if not raw:
            raise StopIteration
        self.taken.append(raw)
        self._bytes += len(raw)
        if self._bytes > MAX_LINE_BYTES:
            raise csv.Error(f"longer than {MAX_LINE_BYTES >> 20} MiB: a quote is not closed")
        return raw.decode(self._reader.codec)
