"""`CsvParts`: CSV files, one for each batch."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json, to_jsonable_python
from sqlalchemy.dialects.postgresql import Range

from worker.errors import UsageError
from worker.sinks.parts import JSON_FORM, Parts, make_dict
from worker.sources.csv_file import check_columns

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


class CsvParts(Parts):
    """CSV files with a header, in UTF-8, one for each batch: `async with CsvParts(ctx, directory) as parts`.

    Times are written in ISO 8601, booleans as `true` and `false`, members of an enum as their values, bytes in base64,
    and dicts, lists, models and dataclasses as JSON.

    Args:
        ctx: The context of the job.
        directory: A directory, or a URL; see `Parts`.
        columns: The names of the columns, in their order. Default: those of the first row of each part.
        delimiter: The character between two fields.
        null: The text for None.
        compress: Whether to compress the parts by gzip.
        storage_options: Options for fsspec.
    """

    def __init__(
        self,
        ctx: JobContext,
        directory: str | Path,
        *,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        null: str = "",
        compress: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ctx, directory, storage_options=storage_options)
        if columns is not None:
            check_columns(columns)
        try:
            csv.writer(io.StringIO(), delimiter=delimiter)
        except (TypeError, ValueError) as error:
            raise UsageError(f"csv: {error}") from error
        self._columns = None if columns is None else list(columns)
        self._delimiter = delimiter
        self._null = null
        self._compress = compress
        self.suffix = ".csv.gz" if compress else ".csv"

    def _encode(self, rows: Sequence[Any]) -> bytes:
        dicts = [make_dict(row) for row in rows]
        columns = self._columns or list(dicts[0])
        unknown = sorted({name for row in dicts for name in row.keys() - set(columns)})
        if unknown and self._columns is None:
            names = ", ".join(map(repr, unknown))
            raise UsageError(f"csv: rows have columns that the first one has not: {names}; set columns=[...]")
        lines = _Lines()
        writer = csv.writer(lines, delimiter=self._delimiter, lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows([self._format(row.get(name)) for name in columns] for row in dicts)
        data = "".join(lines.written).encode()
        return gzip.compress(data, mtime=0) if self._compress else data

    def _format(self, value: Any) -> Any:
        if value is None:
            return self._null
        if isinstance(value, Enum):
            return self._format(value.value)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if hasattr(value, "isoformat"):
            return value.isoformat()
        if isinstance(value, Range | Decimal):
            return str(value)
        plain = to_jsonable_python(value, **JSON_FORM)
        return plain if isinstance(plain, str) else to_json(plain, **JSON_FORM).decode()


class _Lines:
    """The lines of a part. The writer quotes fields with a character of its line end: both, and a line feed is kept."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line.removesuffix("\r\n") + "\n")
