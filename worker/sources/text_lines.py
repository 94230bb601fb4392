"""`TextLines`: the lines of a text file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worker.sources.decompression import Compression
from worker.sources.file_source import FileSource, Record, describe_problem
from worker.sources.line_reader import LineReader


class TextLines(FileSource[str]):
    """The lines of a text file, without their line ends (`\\n` or `\\r\\n`): `ctx.walk(TextLines("access.log.gz"))`.

    A restart continues behind the last committed line. A file may grow meanwhile.

    Args:
        path: A path, or a URL that fsspec opens (extra `fsspec`).
        encoding: The encoding of its text. A byte order mark is skipped.
        compression: "gzip", "zstd" (extra `zstd`) or None; "infer" finds it by the first bytes.
        storage_options: Options for fsspec, such as credentials.

    Raises:
        SourceUnavailable: The file cannot be read, or is no file.
        InvalidRow: A line has another encoding, and the walk has no quarantine.
        CursorMismatch: The processed part of the file was truncated or changed.
        UsageError: An extra is not installed.
    """

    kind = "lines"

    def __init__(
        self,
        path: str | Path,
        *,
        encoding: str = "utf-8",
        compression: Compression = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(path, encoding=encoding, compression=compression, storage_options=storage_options)

    def _read_records(self, reader: LineReader) -> Iterator[Record[str]]:
        while raw := reader.read_line():
            line, byte = reader.line, reader.byte
            reader.accept([raw])
            try:
                yield Record(line, byte, raw.decode(reader.codec).removesuffix("\n").removesuffix("\r"))
            except UnicodeDecodeError as error:
                yield Record(line, byte, None, describe_problem(error), raw)
