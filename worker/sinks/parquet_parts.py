"""`ParquetParts`: Parquet files, one for each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
            table = self._arrow.Table.from_pylist([make_dict(row) for row in rows], schema=self._schema)
        except (self._arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"parquet: a row does not fit the schema: {error}") from error
        output = self._arrow.BufferOutputStream()
        self._parquet.write_table(table, output, compression=self._compression)
        data: bytes = output.getvalue().to_pybytes()
        return data
