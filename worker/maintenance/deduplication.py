"""`dedupe`: a job that deletes all but one of equal rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from sqlalchemy import Column, ColumnElement, Delete, and_, delete, or_, select, tuple_
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import FromClause

from worker.batch.sizing import Size
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.definition import Definition
from worker.maintenance.foreign_keys import ensure_no_children
from worker.maintenance.target import Target

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

Keep = Literal["first", "last"]


def dedupe(
    entity: Any,
    by: Any,
    *,
    keep: Keep = "first",
    order: Any = None,
    nulls_are_equal: bool = False,
    size: Size | None = None,
    parallel: int = 1,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that deletes duplicates: `dedupe_names = dedupe(PlaceName, by=["place_id", "name"])`.

    An index on the columns of `by` serves it. Afterwards, a unique index keeps the table free of duplicates.

    Args:
        entity: A mapped class or a `Table` with a primary key.
        by: The column, or the list of columns, whose values duplicates share.
        keep: "first" keeps the row with the lowest primary key, "last" the one with the highest.
        order: A column that decides before the primary key which row is first, such as the time of its last change. A
            null comes first.
        nulls_are_equal: Whether two nulls in a column of `by` are equal. By default they differ, as in a unique index.
        size: The rows of a range, as in `ctx.sweep`.
        parallel: The number of runs that walk together; see `ctx.chunks`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows that it has deleted.

    Raises:
        RegistrationError: An argument is invalid. The job raises `UnsupportedStatement` if other tables refer to rows.
    """
    definition = Definition("dedupe", entity, options)
    name, target = definition.name, definition.target
    compared, key = target.find_columns(by, "by"), target.find_key(None)
    ordered = None if order is None else target.find_column(order, "order")
    if keep not in get_args(Keep):
        raise RegistrationError(f"{name}: keep={keep!r}: give 'first' or 'last'")
    if set(key) <= set(compared):
        raise RegistrationError(f"{name}: by= holds the primary key, so no two rows are equal")
    duplicates = _choose_duplicates(target, compared, keep, ordered, nulls_are_equal=nulls_are_equal)

    async def delete_duplicates(ctx: JobContext) -> int:
        await ensure_no_children(ctx, target, verb="deleted")
        return await ctx.sweep(duplicates, size=size, parallel=parallel)

    return definition.make_job(delete_duplicates, f"Delete duplicates in {target.name}.")


def _choose_duplicates(
    target: Target, compared: list[Column[Any]], keep: Keep, order: Column[Any] | None, *, nulls_are_equal: bool
) -> Delete:
    """Return the statement that deletes the rows to which another one is preferred.

    Both are of the entity, not of its table: SQLAlchemy adds the condition of a class that shares a table with others.
    """
    rows = target.entity
    others = target.table.alias() if target.mapper is None else aliased(rows)
    names = [target.key_of(column) for column in compared]
    equal = [
        _get(others, name).is_not_distinct_from(_get(rows, name))
        if nulls_are_equal
        else _get(others, name) == _get(rows, name)
        for name in names
    ]
    key = [target.key_of(column) for column in target.find_key(None)]
    ordered = None if order is None else target.key_of(order)
    preferred = _precedes(others, rows, key, ordered) if keep == "first" else _precedes(rows, others, key, ordered)
    better = select(*[_get(others, name) for name in key]).where(*equal, preferred).correlate(rows)
    return delete(rows).where(better.exists())


def _precedes(one: Any, other: Any, key: list[str], order: str | None) -> ColumnElement[bool]:
    """Return the condition that a row comes before another: by a column, in which null is first, and then by key."""
    parts = [[_get(rows, name) for name in key] for rows in (one, other)]
    by_key = parts[0][0] < parts[1][0] if len(key) == 1 else tuple_(*parts[0]) < tuple_(*parts[1])
    if order is None:
        return by_key
    left, right = _get(one, order), _get(other, order)
    return or_(
        left < right,
        and_(left.is_(None), right.is_not(None)),
        and_(left.is_not_distinct_from(right), by_key),
    )


def _get(rows: Any, name: str) -> Any:
    """Return a column of a table, of a mapped class, or of an alias of one."""
    return rows.columns[name] if isinstance(rows, FromClause) else getattr(rows, name)
