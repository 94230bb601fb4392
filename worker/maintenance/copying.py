"""`copy_table`: a job that copies rows into another table, inside the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from sqlalchemy import Column, select
from sqlalchemy.dialects.postgresql import Insert, insert

from worker.batch.keyset import underlying_column
from worker.batch.sizing import Size
from worker.db.statement_internals import is_same_table
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.column_types import ensure_values_stay, read_tables
from worker.maintenance.definition import Definition
from worker.maintenance.target import Condition, Target, check_condition, find_target, is_expression, resolve_condition

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

#: What happens to a row whose key is in the table already.
OnConflict = Literal["error", "skip", "update"]


def copy_table(
    entity: Any,
    into: Any,
    *,
    columns: Mapping[Any, Any] | None = None,
    where: Condition | None = None,
    on_conflict: OnConflict = "error",
    conflict_key: Any = None,
    key: Any = None,
    size: Size | None = None,
    parallel: int = 1,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that copies rows: `copy_posts = copy_table(Post, ArchivedPost, on_conflict="skip")`.

    The server copies ranges of the key by INSERT ... SELECT.

    Args:
        entity: The mapped class or `Table` to copy from.
        into: The mapped class or `Table` to copy into.
        columns: For each column to write, a column or an SQL expression of the table to copy from. Default: all columns
            of the model, to those with the same names.
        where: The condition of the rows; see `purge`. Default: all rows.
        on_conflict: For a row that exists already: "error" fails the job, "skip" keeps the row, "update" overwrites it.
        conflict_key: The columns of a unique index that tell which rows exist. Default: the primary key of `into`.
        key: A unique, not-null key to walk by. Default: the primary key.
        size: The rows of a range, as in `ctx.sweep`.
        parallel: The number of runs that walk together; see `ctx.chunks`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows that it has written.

    Raises:
        RegistrationError: An argument is invalid, or `into` lacks a column. The job raises `UsageError` if a column of
            `into` has a type that could change values.
    """
    definition = Definition("copy_table", entity, options)
    name, source = definition.name, definition.target
    target = find_target(name, into)
    check_condition(name, where)
    values = _find_values(source, target, columns)
    handle_conflicts = _choose_handling(target, on_conflict, conflict_key, list(values))
    by = source.attributes(source.find_key(key))

    async def copy_rows(ctx: JobContext) -> int:
        await _ensure_types(ctx, source, target, values)
        condition = resolve_condition(name, where)
        rows: Any = select(*values.values())
        rows = rows if condition is None else rows.where(condition)
        written = insert(target.table).from_select([column.key for column in values], rows)
        return await ctx.sweep(handle_conflicts(written), by=by, size=size, parallel=parallel)

    return definition.make_job(copy_rows, f"Copy rows of {source.name} into {target.name}.")


def _find_values(source: Target, target: Target, columns: Mapping[Any, Any] | None) -> dict[Column[Any], Any]:
    """Return the expression for each column to write.

    Raises:
        RegistrationError: A table lacks a column, or a value is no expression.
    """
    if source.table is target.table:
        raise RegistrationError(f"{source.owner}: {source.name} cannot be copied into itself")
    if columns is not None:
        if not columns:
            raise RegistrationError(f"{source.owner}: columns= names no column")
        found = {}
        for named, value in columns.items():
            if not is_expression(value):
                raise RegistrationError(
                    f"{source.owner}: columns=: the value of {named} is {value!r}: give a column or an SQL expression, "
                    f"such as literal(1)"
                )
            found[target.find_column(named, "columns")] = value
        return found
    known = {column.name: column for column in target.columns}
    missing = [column.name for column in source.columns if column.name not in known]
    if missing:
        raise RegistrationError(
            f"{source.owner}: {target.name} lacks {', '.join(missing)} of {source.name}: add them, or choose columns="
        )
    copied = [column for column in source.columns if known[column.name].computed is None]
    return {known[column.name]: source.attribute(column) for column in copied}


async def _ensure_types(ctx: JobContext, source: Target, target: Target, values: Mapping[Column[Any], Any]) -> None:
    """Raise `UsageError` if the other table could change values. An expression is converted as PostgreSQL does."""
    read, written = await read_tables(ctx, source, target)
    pairs = []
    for column, value in values.items():
        plain = underlying_column(value)
        if plain is None or not is_same_table(plain.table, source.table):
            continue
        if plain.name in read.columns and column.name in written.columns:
            pairs.append((read.columns[plain.name], written.columns[column.name]))
    advice = f"give these columns the type that they have in {source.name}, or convert them in columns= by cast()"
    ensure_values_stay(source.owner, written, pairs, advice)


def _choose_handling(
    target: Target, on_conflict: OnConflict, conflict_key: Any, columns: list[Column[Any]]
) -> Callable[[Insert], Insert]:
    """Return the function that adds ON CONFLICT to a statement.

    Raises:
        RegistrationError: An argument is invalid.
    """
    if on_conflict not in get_args(OnConflict):
        known = ", ".join(map(repr, get_args(OnConflict)))
        raise RegistrationError(f"{target.owner}: on_conflict={on_conflict!r}: give {known}")
    if on_conflict == "error":
        return lambda written: written
    key = list(target.table.primary_key)
    if conflict_key is not None:
        key = target.find_columns(conflict_key, "conflict_key")
    if not key or not set(key) <= set(columns):
        shown = ", ".join(each.name for each in key) or "conflict_key"
        raise RegistrationError(f"{target.owner}: on_conflict={on_conflict!r} needs a value for {shown}")
    others = [column for column in columns if column not in key]
    if on_conflict == "skip" or not others:
        return lambda written: written.on_conflict_do_nothing(index_elements=key)
    return lambda written: written.on_conflict_do_update(
        index_elements=key, set_={column.key: written.excluded[column.key] for column in others}
    )
