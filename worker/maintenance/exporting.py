"""`export_table`: a job that writes rows to files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from sqlalchemy import JSON, Column, Select, Text, cast, select

from worker.batch.options import StreamOptions
from worker.batch.sizing import Size
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.definition import Definition
from worker.maintenance.target import Condition, Target, check_condition, resolve_condition
from worker.sinks import CsvParts, JsonLinesParts, ParquetParts
from worker.sinks.parts import Parts

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

ExportFormat = Literal["csv", "jsonl", "parquet"]


def export_table(
    entity: Any,
    directory: str | None = None,
    *,
    format: ExportFormat = "csv",  # noqa: A002 - the name that callers expect
    columns: Any = None,
    where: Condition | None = None,
    key: Any = None,
    compress: bool = False,
    schema: Any = None,
    replica: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    size: Size | None = None,
    **options: Unpack[JobKeywords],
) -> Job[..., str]:
    """Return a job that exports rows: `export_posts = export_table(Post, "/srv/exports/posts", cron="0 4 * * *")`.

    The rows of one snapshot are written in the order of their key, a file for each batch. Each run has a folder of its
    own in the directory; exactly the files that its `manifest.json` lists count. See `worker.sinks`.

    Args:
        entity: A mapped class or a `Table`.
        directory: The directory or URL with the folders of the runs; also an argument of the job.
        format: "csv", "jsonl", or "parquet" (extra `parquet`).
        columns: The columns to write, in their order. Default: all columns of the model.
        where: The condition of the rows; see `purge`. Default: all rows.
        key: A unique, not-null key to order the rows by. Default: the primary key.
        compress: Whether CSV and JSON are compressed by gzip.
        schema: The pyarrow schema of Parquet files. Default: derived from the values of each file.
        replica: Whether to read at the replica; see `ctx.stream`.
        storage_options: Options for fsspec, such as credentials.
        size: The rows of a file, as in `ctx.stream`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the folder of its run.

    Raises:
        RegistrationError: An argument is invalid. The job raises `SinkUnavailable` if the directory cannot be written.
    """
    definition = Definition("export_table", entity, options)
    check_condition(definition.name, where)
    target = definition.target
    chosen = target.columns if columns is None else target.find_columns(columns, "columns")
    sink = _Sink(definition.name, format, compress, schema, storage_options, [target.key_of(each) for each in chosen])
    rows = select(*[_read(target, each, format) for each in chosen]).order_by(*target.attributes(target.find_key(key)))

    async def export(ctx: JobContext, directory: str) -> str:
        return await sink.write(ctx, directory, _choose(rows, definition.name, where), size=size, replica=replica)

    if directory is not None:
        export.__defaults__ = (str(directory),)
    return definition.make_job(export, f"Export rows of {target.name} as {format}.")


def _read(target: Target, column: Column[Any], form: ExportFormat) -> Any:
    """Return a column as a file gets it. In CSV, the text "123" in JSON has to differ from the number."""
    attribute = target.attribute(column)
    is_json = form == "csv" and isinstance(column.type, JSON)
    return cast(attribute, Text).label(column.key) if is_json else attribute


def _choose(rows: Select[Any], owner: str, where: Condition | None) -> Select[Any]:
    condition = resolve_condition(owner, where)
    return rows if condition is None else rows.where(condition)


class _Sink:
    """The files to write.

    Raises:
        RegistrationError: The options do not fit the format.
    """

    def __init__(
        self,
        owner: str,
        form: ExportFormat,
        compress: bool,
        schema: Any,
        storage_options: Mapping[str, Any] | None,
        names: list[str],
    ) -> None:
        if form not in get_args(ExportFormat):
            raise RegistrationError(f"{owner}: format={form!r}: give {', '.join(map(repr, get_args(ExportFormat)))}")
        if (compress and form == "parquet") or (schema is not None and form != "parquet"):
            raise RegistrationError(f"{owner}: compress= is for CSV and JSON lines, and schema= for Parquet")
        self._form = form
        self._compress = compress
        self._schema = schema
        self._storage_options = storage_options
        self._names = names

    async def write(self, ctx: JobContext, directory: str, rows: Select[Any], **options: Unpack[StreamOptions]) -> str:
        """Write the rows of a select. Returns the folder of the run."""
        folder = f"{directory.rstrip('/')}/{_make_folder_name(ctx.run_id)}"
        async with self._open(ctx, folder) as parts:
            async for batch in ctx.stream(rows, **options):
                values = batch if len(self._names) > 1 else [(value,) for value in batch]
                await parts.write(batch, [dict(zip(self._names, row, strict=True)) for row in values])
        return folder

    def _open(self, ctx: JobContext, folder: str) -> Parts:
        storage = self._storage_options
        if self._form == "csv":
            return CsvParts(ctx, folder, columns=self._names, compress=self._compress, storage_options=storage)
        if self._form == "jsonl":
            return JsonLinesParts(ctx, folder, compress=self._compress, storage_options=storage)
        return ParquetParts(ctx, folder, schema=self._schema, storage_options=storage)


def _make_folder_name(run_id: str) -> str:
    """Return the name of a run's folder: its id, or a safe form of it that no other run has."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", run_id).lstrip(".")[:100]  # never ".." or a path
    return safe if safe == run_id else f"{safe}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"
