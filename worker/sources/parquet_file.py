"""`ParquetFile`: the rows of a Parquet file."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

from pydantic import TypeAdapter

from worker.batch.source import Bounds, OpenStep, Page, RejectedRow
from worker.batch.transaction import BatchTransaction
from worker.errors import CursorMismatch, InvalidRow, UnsupportedStatement, format_error
from worker.sources.file_source import convert
from worker.sources.location import Location, load_extra, read_version

T = TypeVar("T")

_FOOTER_BYTES = 1 << 16


class ParquetFile(Generic[T]):
    """The rows of a Parquet file (extra `parquet`): `ctx.walk(ParquetFile("users.parquet", UserRow))`.

    A restart continues in the row group of the last committed row; the row groups before it are not read again. A
    Parquet file does not grow: if its size, its modification time or its footer has changed, the run ends with
    `CursorMismatch`.

    Args:
        path: A path, or a URL that fsspec opens (extra `fsspec`).
        row_type: A pydantic model, a dataclass, or another type that pydantic validates. Default: dicts.
        columns: The columns to read. Default: all.
        storage_options: Options for fsspec.

    Raises:
        SourceUnavailable: The file cannot be read.
        UnsupportedStatement: It is no Parquet file, or has no such column.
        CursorMismatch: It was changed.
        InvalidRow: `row_type` does not accept a row, and the walk has no quarantine.
    """

    kind = "parquet"

    @overload
    def __init__(
        self: ParquetFile[dict[str, Any]],
        path: str | Path,
        row_type: None = None,
        *,
        columns: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        path: str | Path,
        row_type: type[T],
        *,
        columns: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None: ...
    def __init__(
        self,
        path: str | Path,
        row_type: type[T] | None = None,
        *,
        columns: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._location = Location(path, storage_options)
        self._columns = None if columns is None else list(columns)
        self.fingerprint = self._location.name + ("" if columns is None else f" columns={','.join(columns)}")
        self._adapter: TypeAdapter[Any] | None = None if row_type is None else TypeAdapter(row_type)
        self._file: Any = None
        self._raw: Any = None
        self._mark = ""
        self._version: str | None = None
        self._run_id = ""
        self._only: list[list[Any]] | None = None
        self._group = self._row = 0  # the place of the next row
        self._rows: Iterator[_Row] = iter(())

    async def open(self, step: OpenStep) -> Bounds:
        """Open the file at the row group of the cursor."""
        self._run_id = step.run_id
        await asyncio.to_thread(self._open_file)
        self._only = step.only_keys
        if self._only is not None:
            return Bounds(total=len(self._only))
        if step.cursor is None:
            self._go_to(0, 0)
        else:
            if step.cursor["mark"] != self._mark:
                raise CursorMismatch(
                    f"{self._location.name} has changed since its first {step.cursor['rows']} rows were done; restore "
                    f"it, or start over: worker retry {step.run_id} --from-start"
                )
            await asyncio.to_thread(self._go_to, step.cursor["group"], step.cursor["row"])
        return Bounds(total=self._file.metadata.num_rows)

    def _open_file(self) -> None:
        name = self._location.name
        parquet = load_extra("pyarrow.parquet", "parquet", name)
        self._raw, size, version = self._location.open()
        self._version = version
        try:
            self._raw.seek(max(0, (size or 0) - _FOOTER_BYTES))
            footer = self._raw.read()
            self._raw.seek(0)
            self._file = parquet.ParquetFile(self._raw)
        except Exception as error:
            if "arquet" in str(error):  # of pyarrow: no magic bytes, or a footer that is damaged
                raise UnsupportedStatement(f"{name} is not a Parquet file, or is damaged: {error}") from error
            raise self._location.unavailable(error) from error
        self._mark = hashlib.sha256(f"{version}".encode() + footer).hexdigest()
        known = self._file.schema_arrow.names
        unknown = sorted(set(self._columns or ()) - set(known))
        twice = sorted({name for name in known if known.count(name) > 1 and name in (self._columns or known)})
        if twice:
            raise UnsupportedStatement(f"{name} has several columns of the name {', '.join(twice)}: select others")
        if unknown:
            raise UnsupportedStatement(f"{name} has no column {', '.join(unknown)}: it has {', '.join(known)}")

    def _go_to(self, group: int, row: int) -> None:
        self._group, self._row, self._rows = group, row, iter(())
        if group < self._file.metadata.num_row_groups:
            self._rows = self._read_group(group, row)

    def _read_group(self, group: int, skipped: int) -> Iterator[_Row]:
        try:
            for batch in self._file.iter_batches(batch_size=4_096, row_groups=[group], columns=self._columns):
                if skipped < batch.num_rows:
                    yield from _convert_rows(batch.slice(skipped))
                skipped = max(0, skipped - batch.num_rows)
        except GeneratorExit:
            raise
        except Exception as error:  # of pyarrow or of the file system
            raise self._location.unavailable(error, f" in row group {group}") from error

    def _read_row(self) -> tuple[list[int], _Row] | None:
        while self._group < self._file.metadata.num_row_groups:
            row = next(self._rows, None)
            if row is not None:
                self._row += 1
                return [self._group, self._row - 1], row
            self._go_to(self._group + 1, 0)
        return None

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[T] | None:
        """Return the next rows."""
        if self._only is not None:
            return await asyncio.to_thread(self._fetch_retried, cursor or 0)
        return await asyncio.to_thread(self._fetch_next, 0 if cursor is None else cursor["rows"], size)

    def _fetch_next(self, done: int, size: int) -> Page[T] | None:
        found: list[tuple[list[int], _Row]] = []
        while len(found) < size and (row := self._read_row()) is not None:
            found.append(row)
        if not found:
            return None
        done += len(found)
        cursor = {"group": self._group, "row": self._row, "rows": done, "mark": self._mark}
        return self._make_page(found, cursor, done / max(1, self._file.metadata.num_rows))

    def _fetch_retried(self, number: int) -> Page[T] | None:
        """Return one row of those that were quarantined. The cursor is their number."""
        assert self._only is not None  # noqa: S101
        if number >= len(self._only):
            return None
        group, row = self._only[number]
        self._go_to(group, row)
        found = self._read_row()
        if found is None or found[0] != [group, row]:
            raise InvalidRow(f"{self._location.name} has no row {row} in row group {group} any more")
        return self._make_page([found], number + 1, None)

    def _make_page(self, found: list[tuple[list[int], _Row]], cursor: Any, share: float | None) -> Page[T]:
        rows: list[Any] = []
        keys: list[list[int]] = []
        rejected: list[RejectedRow] = []
        for key, row in found:
            try:
                if isinstance(row, _Unreadable):
                    raise InvalidRow(row.problem)
                rows.append(row if self._adapter is None else convert(self._adapter.validate_python, row))
                keys.append(key)
            except InvalidRow as error:
                place = f"{self._location.name}, row {key[1] + 1} of row group {key[0] + 1}"
                values = row.values if isinstance(row, _Unreadable) else row
                shown = {name: str(value)[:1_000] for name, value in values.items()}
                rejected.append(RejectedRow(list(key), InvalidRow(f"{place}: {error}"), shown))
        first, last = found[0][0], found[-1][0]
        return Page(
            rows, cursor, first_key=first, last_key=last, row_keys=lambda: keys, share=share,
            examined=len(found), rejected=rejected, check=self._ensure_unchanged,
        )  # fmt: skip

    def _ensure_unchanged(self) -> None:
        """Raise `CursorMismatch` if a file of this machine was changed in place while its rows were read."""
        if not self._location.is_url and read_version(os.fstat(self._raw.fileno())) != self._version:
            raise CursorMismatch(
                f"{self._location.name} was changed while it was read: the rows of this batch may be of either "
                f"content. Restore the file, or start over: worker retry {self._run_id} --from-start"
            )

    async def close(self) -> None:
        """Close the file."""
        if self._raw is not None:
            await asyncio.to_thread(self._raw.close)


class _Unreadable(NamedTuple):
    """A row with a value that Python does not have, such as a time of a nanosecond.

    Attributes:
        problem: The reason.
        values: The values of the others, and the types of those.
    """

    problem: str
    values: dict[str, Any]


_Row = dict[str, Any] | _Unreadable


def _convert_rows(batch: Any) -> Iterator[_Row]:
    """Yield the rows of a record batch. If one of them cannot be converted, it is found by itself."""
    try:
        rows = batch.to_pylist()
    except Exception:  # noqa: BLE001 - pyarrow raises errors of any type
        for number in range(batch.num_rows):
            yield _convert_row(batch.slice(number, 1))
    else:
        yield from rows


def _convert_row(batch: Any) -> _Row:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except Exception as error:  # noqa: BLE001
            values[name] = f"({column.type})"
            problems.append(f"column {name}: {format_error(error)}")
    return _Unreadable("; ".join(problems), values) if problems else values
