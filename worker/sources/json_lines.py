"""`JsonLines`: a file with one JSON value a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from pydantic import TypeAdapter
from pydantic_core import from_json

from worker.errors import InvalidRow
from worker.sources.decompression import Compression
from worker.sources.file_source import FileSource, Record, convert, describe_problem
from worker.sources.line_reader import LineReader

T = TypeVar("T")


class JsonLines(FileSource[T], Generic[T]):
    """The values of a file with one JSON value a line: `ctx.walk(JsonLines("users.jsonl", UserRow))`.

    Empty lines are skipped. See `TextLines` for the other arguments, restarts and errors.

    Args:
        path: A path, or a URL.
        row_type: A pydantic model, a dataclass, or another type that pydantic validates. Default: plain JSON values.
        encoding: The encoding of the file.
        compression: "gzip", "zstd" or None; "infer" finds it by the first bytes.
        storage_options: Options for fsspec.
    """

    kind = "json"

    @overload
    def __init__(
        self: JsonLines[Any],
        path: str | Path,
        row_type: None = None,
        *,
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
        encoding: str = "utf-8",
        compression: Compression = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None: ...
    def __init__(
        self,
        path: str | Path,
        row_type: type[T] | None = None,
        *,
        encoding: str = "utf-8",
        compression: Compression = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(path, encoding=encoding, compression=compression, storage_options=storage_options)
        self._parse = from_json if row_type is None else TypeAdapter(row_type).validate_json

    def _read_records(self, reader: LineReader) -> Iterator[Record[T]]:
        parse, is_utf8 = self._parse, reader.codec == "utf-8"
        while raw := reader.read_line():
            line, byte = reader.line, reader.byte
            reader.accept([raw])
            try:
                text = raw if is_utf8 else raw.decode(reader.codec)
                if text.strip():
                    yield Record(line, byte, convert(parse, text))
            except InvalidRow as error:
                yield Record(line, byte, None, str(error), raw)
            except UnicodeDecodeError as error:
                yield Record(line, byte, None, describe_problem(error), raw)
