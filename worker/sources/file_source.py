"""The part of a source of records in a text file that is the same for lines, JSON and CSV."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import PydanticUserError, ValidationError

from worker.batch.source import Bounds, OpenStep, Page, RejectedRow
from worker.batch.transaction import BatchTransaction
from worker.errors import InvalidRow, UnsupportedStatement, format_error
from worker.sources.decompression import Compression, check_compression
from worker.sources.line_reader import LineReader, find_codec
from worker.sources.location import Location

T = TypeVar("T")

_SHOWN_CHARACTERS = 10_000  # of a rejected record, in the quarantine


@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """One record of a file.

    Attributes:
        line: The number of its first line.
        byte: The place of its first byte.
        value: The row.
        problem: The reason if it cannot be parsed; empty otherwise.
        raw: Its bytes if it cannot be parsed.
    """

    line: int
    byte: int
    value: T | None
    problem: str = ""
    raw: bytes = b""


class FileSource(ABC, Generic[T]):
    """Records of a file, by batches. A subclass reads the records.

    Args:
        path: The path or the URL.
        encoding: The encoding of its text.
        compression: "gzip", "zstd" or None; "infer" finds it by the first bytes.
        storage_options: Options for fsspec if `path` is a URL.
        form: The options that change the meaning of the file, for the fingerprint.
    """

    kind = "file"

    def __init__(
        self,
        path: str | Path,
        *,
        encoding: str,
        compression: Compression,
        storage_options: Mapping[str, Any] | None,
        form: str = "",
    ) -> None:
        check_compression(compression)
        self._location = Location(path, storage_options)
        self._codec = find_codec(encoding)
        self._compression = compression
        default = "" if self._codec == "utf-8" else f" encoding={self._codec}"
        self.fingerprint = f"{self._location.name}{default}{form}"
        self._reader: LineReader | None = None
        self._records: Iterator[Record[T]] = iter(())
        self._only: list[list[Any]] | None = None
        self._run_id = ""
        self._max_bytes = 0

    @abstractmethod
    def _read_records(self, reader: LineReader) -> Iterator[Record[T]]:
        """Yield the records from the reader's place on, accepting the lines of each."""

    def _read_head(self, reader: LineReader) -> None:
        """Read what stands before the first record."""

    async def open(self, step: OpenStep) -> Bounds:
        """Open the file behind the records that are done."""
        self._only, self._run_id = step.only_keys, step.run_id
        self._max_bytes = step.settings.batch.max_bytes
        if self._only is not None:
            return Bounds(total=len(self._only))
        await asyncio.to_thread(self._open_file, step.cursor)
        return Bounds()

    def _open_file(self, cursor: Any) -> None:
        self._close_file()
        reader = self._reader = LineReader(self._location, self._codec, self._compression)
        self._read_head(reader)
        if cursor is not None:
            reader.resume(self._run_id, cursor)
        self._records = self._read_records(reader)

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[T] | None:
        """Return the next records."""
        if self._only is not None:
            return await asyncio.to_thread(self._fetch_retried, cursor or 0)
        return await asyncio.to_thread(self._fetch_next, size)

    def _fetch_next(self, size: int) -> Page[T] | None:
        reader = self._reader
        assert reader is not None  # noqa: S101
        found: list[Record[T]] = []
        end = reader.byte + self._max_bytes
        while len(found) < size and reader.byte < end and (record := next(self._records, None)) is not None:
            found.append(record)
        if not found:
            reader.ensure_unchanged(self._run_id)
            return None
        return self._make_page(found, reader.dump(), reader.share)

    def _fetch_retried(self, number: int) -> Page[T] | None:
        """Return one record of those that were quarantined. The cursor is their number."""
        assert self._only is not None  # noqa: S101
        if number >= len(self._only):
            return None
        line, byte = self._only[number]
        if self._reader is None or not self._reader.can_skip_to(byte):
            self._open_file(None)
        reader = self._reader
        assert reader is not None  # noqa: S101
        is_there = reader.can_skip_to(byte) and reader.skip_to(byte, line)
        record = next(self._records, None) if is_there else None
        if record is None or record.byte != byte:
            raise InvalidRow(
                f"{self._location.name} has no record at line {line}, byte {byte} any more: its earlier lines have "
                f"changed in number or length. Restore them, so that each row is at its old place, or delete the row: "
                f"worker quarantine delete"
            )
        return self._make_page([record], number + 1, None)

    def _make_page(self, records: list[Record[T]], cursor: Any, share: float | None) -> Page[T]:
        good = [record for record in records if not record.problem]
        rejected = [self._reject(record) for record in records if record.problem]
        return Page(
            [record.value for record in good],  # type: ignore[misc]
            cursor,
            first_key=(records[0].line,),
            last_key=(records[-1].line,),
            row_keys=lambda: [[record.line, record.byte] for record in good],
            share=share,
            examined=len(records),
            rejected=rejected,
        )

    def _reject(self, record: Record[T]) -> RejectedRow:
        assert self._reader is not None  # noqa: S101
        shown = record.raw.decode(self._reader.codec, errors="replace")[:_SHOWN_CHARACTERS]
        error = InvalidRow(f"{self._location.name}, line {record.line}: {record.problem}")
        return RejectedRow([record.line, record.byte], error, shown)

    async def close(self) -> None:
        """Close the file."""
        await asyncio.to_thread(self._close_file)

    def _close_file(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def convert(make: Callable[[Any], T], value: Any) -> T:
    """Return a value as a row of a type.

    Raises:
        InvalidRow: The type does not accept the value. A validator of the application may raise any error.
        UnsupportedStatement: The type is not complete.
    """
    try:
        return make(value)
    except PydanticUserError as error:
        raise UnsupportedStatement(f"the row type cannot be used: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # pydantic's errors too
        raise InvalidRow(describe_problem(error)) from error
    except Exception as error:
        raise InvalidRow(f"the row type has raised {format_error(error)}") from error


def describe_problem(error: Exception) -> str:
    """Return why a record cannot be parsed, without its values."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)
        places = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in problems]
        return "; ".join(f"{place}: {message}" if place else message for place, message in places[:5])
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding}: {error.reason} at byte {error.start} of the line"
    return str(error) or type(error).__name__
