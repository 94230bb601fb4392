"""`recompute`: a job that computes columns, or a table of totals, again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    Numeric,
    Select,
    Time,
    TypeDecorator,
    cast,
    or_,
    update,
)
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB

from worker.batch.sizing import Size
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.definition import Definition
from worker.maintenance.target import Condition, Pace, Target, check_condition, resolve_condition

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

#: Types to which PostgreSQL rounds a value that it stores, and JSON, for which None has a value of its own.
_ROUNDED = (Numeric, Float, Date, DateTime, Time, Interval, INTERVAL, JSON)


def recompute(
    entity: Any,
    values: Mapping[Any, Any] | Select[*tuple[Any, ...]],
    *,
    where: Condition | None = None,
    key: Any = None,
    size: Size | None = None,
    parallel: int = 1,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that computes values again: `recompute_posts = recompute(User, {User.posts_count: counted})`.

    Args:
        entity: A mapped class or a `Table`.
        values: Columns and their SQL expressions, which may be scalar subqueries: rows with other values are updated,
            in ranges of the key, and no row is written without need. Or a `select()` of totals that is grouped and
            ordered by the primary key, whose columns have the names of the table's: its rows are inserted or updated.
        where: With expressions, the condition of the rows, or a function that returns it when the job begins. Default:
            all rows.
        key: With expressions, a unique, not-null key to walk by. Default: the primary key.
        size: The rows of a batch, as in `ctx.sweep` and `ctx.stream`.
        parallel: The number of runs that walk together; see `ctx.chunks`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows that it has written.

    Raises:
        RegistrationError: An argument is invalid.
    """
    definition = Definition("recompute", entity, options)
    check_condition(definition.name, where)
    if not isinstance(values, Select):
        return _make_columns_job(definition, values, where, key, size=size, parallel=parallel)
    if where is not None or key is not None or parallel != 1:
        raise RegistrationError(
            f"{definition.name}: where= and key= belong to the select(), and parallel= to expressions"
        )
    return _make_totals_job(definition, values, size)


def _make_totals_job(definition: Definition, totals: Select[*tuple[Any, ...]], size: Size | None) -> Job[..., int]:
    target = definition.target
    names = _find_names(target, totals)

    async def recompute_totals(ctx: JobContext) -> int:
        async for partition in ctx.stream(totals, size=size):
            columns = [list(each) for each in zip(*partition, strict=True)]
            await partition.bulk.upsert(target.entity, dict(zip(names, columns, strict=True)))
        return ctx.rows_done

    return definition.make_job(recompute_totals, f"Compute the rows of {target.name} again.")


def _make_columns_job(
    definition: Definition,
    values: Mapping[Any, Any],
    where: Condition | None,
    key: Any,
    **pace: Unpack[Pace],
) -> Job[..., int]:
    name, target = definition.name, definition.target
    if not isinstance(values, Mapping) or not values:
        raise RegistrationError(f"{name}: give the values of columns, as {{User.score: expression}}, or a select()")
    found: dict[Column[Any], Any] = {target.find_column(named, "values"): value for named, value in values.items()}
    by = target.find_key(key)
    if set(by) & set(found):
        raise RegistrationError(
            f"{name}: {', '.join(column.name for column in by)} is the key that the table is walked by, and cannot be "
            f"computed: choose another with key="
        )
    set_values = {target.attribute(column): value for column, value in found.items()}
    differs = or_(*[_differs(target.attribute(column), column, value) for column, value in found.items()])

    async def recompute_columns(ctx: JobContext) -> int:
        rows, condition = update(target.entity).values(set_values), resolve_condition(name, where)
        rows = rows.where(differs) if condition is None else rows.where(condition, differs)
        return await ctx.sweep(rows, by=target.attributes(by), **pace)

    shown = ", ".join(column.name for column in found)
    return definition.make_job(recompute_columns, f"Compute {shown} of {target.name} again.")


def _differs(attribute: Any, column: Column[Any], value: Any) -> ColumnElement[bool]:
    """Return the condition that a column has another value than the one that an UPDATE would store.

    PostgreSQL rounds a number or a time to the type of the column when it stores it. A text that is too long is an
    error then, and would be cut off here.
    """
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    stored = cast(value, column.type) if isinstance(kind, _ROUNDED) else value
    if isinstance(kind, Integer):  # the column of the database may hold larger numbers than that of the model
        stored = cast(value, BigInteger)
    if isinstance(kind, JSON) and not isinstance(kind, JSONB):  # values of json cannot be compared
        attribute, stored = cast(attribute, JSONB), cast(stored, JSONB)
    differs: ColumnElement[bool] = attribute.is_distinct_from(stored)
    return differs


def _find_names(target: Target, totals: Select[*tuple[Any, ...]]) -> list[str]:
    """Return the names of the columns that a select of totals writes.

    Raises:
        RegistrationError: The table lacks one, or a column of its primary key is not selected.
    """
    names = [str(column.key) for column in totals.selected_columns]
    columns = [target.find_column(each, "select()") for each in names]
    if len(names) < 2:
        raise RegistrationError(f"{target.owner}: the select() has to have the key and a column to compute")
    missing = [column.name for column in target.find_key(None) if column not in columns]
    if missing:
        raise RegistrationError(
            f"{target.owner}: the select() has no column {', '.join(missing)}, the primary key of {target.name}: label "
            f"its columns with the names of the table's"
        )
    return [target.key_of(column) for column in columns]
