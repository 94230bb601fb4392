"""`load_file`: a job that loads a file into a table."""

from __future__ import annotations

import base64
import json
import re
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NaiveDatetime,
    StringConstraints,
    create_model,
)
from sqlalchemy import ARRAY, JSON, Column, String, null

from worker.batch.batch import Batch
from worker.batch.batch_retry import OnError
from worker.batch.sizing import Size
from worker.batch.source import Source
from worker.db.calendar_ends import make_exact
from worker.errors import RegistrationError, UsageError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.copying import OnConflict
from worker.maintenance.definition import Definition
from worker.maintenance.target import Target, find_python_type
from worker.sources import CsvFile, JsonLines, ParquetFile

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

FileFormat = Literal["csv", "jsonl", "parquet"]
#: A text that pydantic would read as a number of seconds.
_NUMBER = re.compile(r"\s*[+-]?(?:[\d_]+\.?[\d_]*|\.[\d_]+)(?:[eE][+-]?\d+)?\s*")
_SUFFIXES: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def load_file(
    entity: Any,
    path: str | Path | None = None,
    *,
    within: str | Path | None = None,
    format: FileFormat | None = None,  # noqa: A002 - the name that callers expect
    row_type: type[Any] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    null: str | None = "",
    on_conflict: OnConflict = "error",
    by: Any = None,
    on_error: OnError = "raise",
    quarantine_limit: float = 0,
    size: Size | None = None,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that loads a file: `load_users = load_file(User, on_conflict="update", by=User.email)`.

    Args:
        entity: The mapped class or `Table` to load into. The columns of the file have the names of its columns.
        path: The file, or a URL; also an argument of the job.
        within: A directory that the file has to be in; relative paths begin there. Set it if others enqueue the job.
        format: "csv", "jsonl" or "parquet" (extra `parquet`). Default: by the suffix, such as `.csv`, `.tsv` or
            `.jsonl.gz`.
        row_type: A pydantic model or a dataclass for the rows. Default: made from the types of the columns. Then bytes
            are base64 or `\\x` and hexadecimal digits, arrays and JSON in CSV are JSON, members of an enum are its
            values or else its names, and a generated column is ignored: so the files of `export_table` can be loaded.
        delimiter: The character between two fields of CSV. Default: a tab for `.tsv`, otherwise a comma.
        encoding: The encoding of a text file.
        null: The text in CSV that stands for null, in columns that can be null; None for none.
        on_conflict: For a row that exists already: "error" fails the job, "skip" keeps the row, "update" overwrites it.
        by: The columns of a unique index that tell which rows exist. Default: the primary key.
        on_error: "quarantine" puts invalid rows aside and continues; see `ctx.walk`.
        quarantine_limit: The rows that may be put aside.
        size: The rows of a batch, as in `ctx.walk`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows that it has loaded.

    Raises:
        RegistrationError: An argument is invalid. The job raises `SourceUnavailable` for a missing file, `InvalidRow`
            for an invalid row, which it names by line, and `UsageError` for a path outside of `within`.
    """
    definition = Definition("load_file", entity, options)
    file = _File(definition.target, within, format, row_type, delimiter, encoding, null)
    rows = _Rows(definition.target, on_conflict, by)

    async def load(ctx: JobContext, path: str) -> int:
        async for batch in ctx.walk(file.open(path), size=size, on_error=on_error, quarantine_limit=quarantine_limit):
            await rows.write(batch)
        return ctx.rows_done

    if path is not None:
        load.__defaults__ = (str(path),)
    return definition.make_job(load, f"Load a file into {definition.target.name}.")


class _Rows:
    """Writes the rows of a file."""

    def __init__(self, target: Target, on_conflict: OnConflict, by: Any) -> None:
        if on_conflict not in get_args(OnConflict):
            known = ", ".join(map(repr, get_args(OnConflict)))
            raise RegistrationError(f"{target.owner}: on_conflict={on_conflict!r}: give {known}")
        if by is not None and on_conflict == "error":
            raise RegistrationError(f"{target.owner}: by= needs on_conflict='skip' or 'update'")
        self._entity = target.entity
        # SQLAlchemy writes None into a column of JSON as the JSON value null: in a file, it stands for no value.
        self._json = [target.key_of(each) for each in target.columns if isinstance(each.type, JSON) and each.nullable]
        self._on_conflict = on_conflict
        self._key: list[str] = []
        if on_conflict != "error":
            key = target.find_key(None) if by is None else target.find_columns(by, "by")
            self._key = [target.key_of(column) for column in key]

    async def write(self, batch: Batch[Any]) -> None:
        """Write a batch. A column that the file does not have gets its default."""
        rows = [
            row.model_dump(exclude_unset=True, by_alias=isinstance(row, _Row)) if isinstance(row, BaseModel) else row
            for row in batch
        ]
        for row in rows:
            if isinstance(row, dict):
                row.update({name: null() for name in self._json if row.get(name, ...) is None})
        if self._on_conflict == "error":
            await batch.bulk.insert(self._entity, rows)
        else:
            update: list[str] | None = [] if self._on_conflict == "skip" else None
            await batch.bulk.upsert(self._entity, rows, by=self._key, update=update)


class _File:
    """The form of a file."""

    def __init__(
        self,
        target: Target,
        within: str | Path | None,
        form: FileFormat | None,
        row_type: type[Any] | None,
        delimiter: str | None,
        encoding: str,
        null: str | None,
    ) -> None:
        if form is not None and form not in get_args(FileFormat):
            known = ", ".join(map(repr, get_args(FileFormat)))
            raise RegistrationError(f"{target.owner}: format={form!r}: give {known}")
        self._owner = target.owner
        self._within = within
        self._form = form
        self._delimiter = delimiter
        self._encoding = encoding
        self._row_types = {each: row_type or _make_row_type(target, each, null) for each in get_args(FileFormat)}

    def open(self, path: str) -> Source[Any]:
        """Return the source of a file's rows."""
        form, separator = _find_format(self._owner, path, self._form)
        place, row_type = _find_place(self._owner, path, self._within), self._row_types[form]
        if form == "csv":
            return CsvFile(place, row_type, delimiter=self._delimiter or separator, encoding=self._encoding)
        if form == "jsonl":
            return JsonLines(place, row_type, encoding=self._encoding)
        return ParquetFile(place, row_type)


def _find_format(owner: str, path: str, given: FileFormat | None) -> tuple[FileFormat, str]:
    """Return the format of a file, and the delimiter that its suffix stands for."""
    name = PurePosixPath(path.split("?")[0])
    suffix = PurePosixPath(name.stem).suffix if name.suffix in (".gz", ".zst") else name.suffix
    found = given or _SUFFIXES.get(suffix.lower())
    if found is None:
        raise UsageError(
            f"{owner}: the suffix of {name.name} names no format: set format=, or rename the file to one of "
            f"{', '.join(_SUFFIXES)}"
        )
    return found, "\t" if suffix.lower() == ".tsv" else ","


def _find_place(owner: str, path: str, within: str | Path | None) -> str:
    """Return the path of a file, in its directory.

    Raises:
        UsageError: The file is outside of the directory.
    """
    if within is None:
        return path
    root = Path(within).resolve()
    found = (root / path).resolve()
    if "://" in path or not found.is_relative_to(root):
        raise UsageError(f"{owner}: {path} is not in {root}, the directory that this job reads from (within=)")
    return str(found)


class _Row(BaseModel):
    """A row of a file. Its fields are numbered: pydantic does not take each name of a column, such as `_id`."""

    model_config = ConfigDict(extra="forbid")


def _make_row_type(target: Target, form: FileFormat, null: str | None) -> type[_Row]:
    """Return a model that validates the rows of a file by the types of a table's columns."""
    fields: dict[str, Any] = {}
    for number, column in enumerate(target.columns):
        name, key = f"column_{number}", target.key_of(column)
        if column.computed is not None:  # the database computes it, also where the file has it
            fields[name] = (Any, Field(None, alias=key, exclude=True))
            continue
        hint: Any = _find_hint(column)
        if form == "csv" and isinstance(column.type, JSON | ARRAY):
            hint = Annotated[hint, BeforeValidator(_read_json)]
        if form != "parquet" and hint is bytes:
            hint = Annotated[bytes, BeforeValidator(_read_bytes)]
        if column.nullable:
            hint = Annotated[hint | None, BeforeValidator(partial(_read_null, null if form == "csv" else None))]
        has_default = column.nullable or column.default is not None or column.server_default is not None
        is_numbered = column is column.table.autoincrement_column or column.identity is not None
        fields[name] = (hint, Field(None if has_default or is_numbered else ..., alias=key))
    return create_model(f"{target.table.name}_row", __base__=_Row, **fields)


def _find_hint(column: Column[Any]) -> Any:
    kind = find_python_type(column)
    if kind is datetime:
        aware = AwareDatetime if getattr(column.type, "timezone", False) else NaiveDatetime
        return Annotated[aware, BeforeValidator(_refuse_number)]
    if kind is date:
        return Annotated[date, BeforeValidator(_refuse_number), AfterValidator(make_exact)]
    if kind is time:
        return Annotated[time, BeforeValidator(_refuse_number)]
    if kind is str and isinstance(column.type, String) and column.type.length:
        return Annotated[str, StringConstraints(max_length=column.type.length)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Annotated[kind, BeforeValidator(partial(_read_member, kind))]
    return Any if kind is None else kind


def _read_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _refuse_number(value: Any) -> Any:
    """Return a date or a time. Pydantic would take a number as seconds or milliseconds: 20240101 as August 1970."""
    if isinstance(value, int | float | Decimal) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError("a number is no date and no time: write it in ISO 8601, such as 2026-01-31T12:00Z")
    return value


def _read_bytes(value: Any) -> Any:
    """Return bytes from base64, as sinks write them, or from the form of PostgreSQL, hexadecimal digits behind \\x."""
    if not isinstance(value, str):
        return value
    if value.startswith("\\x"):
        return bytes.fromhex(value[2:])
    return base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)


def _read_null(null: str | None, value: Any) -> Any:
    return None if null is not None and value == null else value


def _read_member(kind: type[Enum], value: Any) -> Any:
    """Return the member of an enum by its value, as sinks write it, or else by its name, as SQLAlchemy stores it.

    A value of one member can be the name of another one.
    """
    if not isinstance(value, str):
        return value
    members = {**kind.__members__, **{str(member.value): member for member in kind}}
    return members.get(value, value)
