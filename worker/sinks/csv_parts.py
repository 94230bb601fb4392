"""`CsvParts`: CSV files, one for each batch."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from worker.errors import UsageError
from worker.sinks.parts import Parts, make_dict

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


class CsvParts(Parts):
    """CSV files with a header, in UTF-8, one for each batch: `async with CsvParts(ctx, directory) as parts`.

    Times are written in ISO 8601, booleans as `true` and `false`, and dicts and lists as JSON.

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
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([self._format(row.get(name)) for name in columns] for row in dicts)
        data = text.getvalue().encode()
        return gzip.compress(data, mtime=0) if self._compress else data

    def _format(self, value: Any) -> Any:
        if value is None:
            return self._null
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if hasattr(value, "isoformat"):
            return value.isoformat()
        return to_json(value, fallback=str).decode() if isinstance(value, dict | list | tuple) else str(value)
