"""`ParquetParts`: Parquet files, one for each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from worker.errors import UsageError
from worker.sinks.parts import Parts, make_dict
from worker.sources.location import load_extra

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


class ParquetParts(Parts):
    """Parquet files, one for each batch (extra `parquet`): `async with ParquetParts(ctx, directory) as parts`.

    Args:
        ctx: The context of the job.
        directory: A directory, or a URL; see `Parts`.
        schema: The schema of pyarrow. Give one: without it, the types of a part are those of its own values, so that a
            column without values has another type than in the other parts.
        compression: The compression of the columns, as pyarrow names it.
        storage_options: Options for fsspec.

    Raises:
        UsageError: pyarrow is not installed, or a row does not fit the schema.
    """

    suffix = ".parquet"

    def __init__(
        self,
        ctx: JobContext,
        directory: str | Path,
        *,
        schema: Any = None,
        compression: str = "zstd",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ctx, directory, storage_options=storage_options)
        self._arrow = load_extra("pyarrow", "parquet", "a sink of Parquet files")
        self._parquet = load_extra("pyarrow.parquet", "parquet", "a sink of Parquet files")
        self._schema = schema
        self._compression = compression

    def _encode(self, rows: Sequence[Any]) -> bytes:
        try:
            table = self._arrow.Table.from_pylist([_make_plain(make_dict(row)) for row in rows], schema=self._schema)
        except (self._arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"parquet: a row does not fit the schema: {error}") from error
        output = self._arrow.BufferOutputStream()
        try:
            self._parquet.write_table(table, output, compression=self._compression)
        except (self._arrow.ArrowException, TypeError, ValueError) as error:
            raise UsageError(f"parquet: a part cannot be written: {error}") from error
        data: bytes = output.getvalue().to_pybytes()
        return data


def _make_plain(value: Any) -> Any:
    """Return a value in the types that pyarrow knows: no member of an enum, no model and no dataclass."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        value = dict(value)
    elif is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: _make_plain(each) for name, each in value.items()}
    return [_make_plain(each) for each in value] if isinstance(value, list | tuple) else value
