"""`backfill_column`: a job that fills a column, by SQL or by a function of the row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import Column, select, update

from worker.batch.batch_retry import OnError
from worker.batch.options import QuarantineOptions
from worker.batch.sizing import Size
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.definition import Definition
from worker.maintenance.target import Condition, Pace, Target, check_condition, is_expression, resolve_condition

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


def backfill_column(
    entity: Any,
    column: Any,
    value: Any,
    *,
    where: Condition | None = None,
    key: Any = None,
    size: Size | None = None,
    parallel: int = 1,
    on_error: OnError = "raise",
    quarantine_limit: float = 0,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that fills a column: `fill_slugs = backfill_column(Post, Post.slug, func.lower(Post.title))`.

    Args:
        entity: A mapped class or a `Table`.
        column: The column to fill.
        value: A constant or an SQL expression, which the server writes in ranges of the key. Or a function, plain or
            async, that takes a row and returns the value: the rows of a batch are locked, and written in bulk.
        where: The condition of the rows; see `purge`. Default: the rows in which the column is null.
        key: A unique, not-null key to walk by. Default: the primary key.
        size: The rows of a batch, as in `ctx.chunks` and `ctx.sweep`.
        parallel: The number of runs that walk together; see `ctx.chunks`.
        on_error: With a function: "quarantine" puts rows aside for which it raises; see `ctx.chunks`.
        quarantine_limit: The rows that may be put aside.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows that it has filled.

    Raises:
        RegistrationError: An argument is invalid.
    """
    default_name = f"backfill_{getattr(column, 'key', column)}"
    definition = Definition("backfill_column", entity, options, default_name=default_name)
    target = definition.target
    check_condition(definition.name, where)
    filled = _Filled(
        target, target.find_column(column, "column"), target.find_key(key), where, size=size, parallel=parallel
    )
    if is_expression(value) or not callable(value):
        if on_error != "raise" or quarantine_limit:
            raise RegistrationError(
                f"{definition.name}: on_error= and quarantine_limit= are for a function, which fails row by row"
            )
        return filled.make_sql_job(definition, value)
    return filled.make_function_job(definition, value, on_error=on_error, quarantine_limit=quarantine_limit)


class _Filled:
    """The column and the rows to fill."""

    def __init__(
        self,
        target: Target,
        column: Column[Any],
        key: list[Column[Any]],
        where: Condition | None,
        **pace: Unpack[Pace],
    ) -> None:
        if column in key:
            raise RegistrationError(
                f"{target.owner}: {column.name} is the key that the table is walked by: choose another with key="
            )
        self._target = target
        self._attribute = target.attribute(column)
        self._name = target.key_of(column)
        self._key = target.attributes(key)
        self._key_names = [target.key_of(each) for each in key]
        self._where = where
        self._pace = pace
        self._summary = f"Fill {column.name} of {target.name}."

    def _find_rows(self) -> Any:
        if self._where is None:
            return self._attribute.is_(None)
        return resolve_condition(self._target.owner, self._where)

    def make_sql_job(self, definition: Definition, value: Any) -> Job[..., int]:
        """Return the job that fills the column by SQL."""

        async def fill_by_sql(ctx: JobContext) -> int:
            rows = update(self._target.entity).where(self._find_rows()).values({self._attribute: value})
            return await ctx.sweep(rows, by=self._key, **self._pace)

        return definition.make_job(fill_by_sql, self._summary)

    def make_function_job(
        self, definition: Definition, function: Callable[[Any], Any], **options: Unpack[QuarantineOptions]
    ) -> Job[..., int]:
        """Return the job that fills the column by a function of the row."""

        async def fill_by_function(ctx: JobContext) -> int:
            rows: Any = select(self._target.entity).where(self._find_rows())
            async for batch in ctx.chunks(rows, by=self._key, **self._pace, **options):
                await batch.bulk.update(
                    self._target.entity, [await self._make_row(function, row) for row in batch], by=self._key_names
                )
            return ctx.rows_done

        return definition.make_job(fill_by_function, self._summary)

    async def _make_row(self, function: Callable[[Any], Any], row: Any) -> dict[str, Any]:
        value = function(row)
        if inspect.isawaitable(value):
            value = await value
        return {**{name: getattr(row, name) for name in self._key_names}, self._name: value}
