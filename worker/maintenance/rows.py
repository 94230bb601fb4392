"""The rows that `purge` and `archive` work on: those with a condition, those of an age, or both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_

from worker.errors import RegistrationError, UsageError
from worker.job.definition import Job
from worker.maintenance.definition import Definition
from worker.maintenance.target import (
    Condition,
    Target,
    check_condition,
    find_python_type,
    resolve_condition,
)

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

#: Works on the rows with a condition, and returns their number.
Work = Callable[["JobContext", Any], Awaitable[int]]


def make_job_for_rows(
    definition: Definition,
    work: Work,
    *,
    where: Condition | None,
    older_than: timedelta | None,
    by: Any,
    summary: str,
) -> Job[..., int]:
    """Return a job that works on chosen rows. With `older_than`, the age is an argument of the job.

    Raises:
        RegistrationError: No rows are chosen, or an argument is invalid.
    """
    name = definition.name
    check_condition(name, where)
    if older_than is None:
        if where is None:
            raise RegistrationError(f"{name}: give where= or older_than=; for all rows, where=sqlalchemy.true()")
        if by is not None:
            raise RegistrationError(f"{name}: by= needs older_than=")

        async def work_on_chosen(ctx: JobContext) -> int:
            return await work(ctx, resolve_condition(name, where))

        return definition.make_job(work_on_chosen, summary)
    age, default = Age(definition.target, by, older_than), older_than

    async def work_on_old(ctx: JobContext, older_than: timedelta = default) -> int:
        old, chosen = age.condition(older_than, ctx.enqueued_at), resolve_condition(name, where)
        return await work(ctx, old if chosen is None else and_(old, chosen))

    return definition.make_job(work_on_old, summary)


class Age:
    """The rows that are older than a time.

    Args:
        target: The table.
        by: The column with the time of a row.
        older_than: The age.

    Raises:
        RegistrationError: The column does not exist, or holds no time, or the age is not positive.
    """

    def __init__(self, target: Target, by: Any, older_than: Any) -> None:
        owner = target.owner
        if by is None:
            raise RegistrationError(f"{owner}: older_than= needs by=, the column with the time of a row")
        column = target.find_column(by, "by")
        self._attribute = target.attribute(column)
        self._kind = find_python_type(column)
        self._is_aware = bool(getattr(column.type, "timezone", False))
        if self._kind not in (datetime, date):
            raise RegistrationError(
                f"{owner}: by={column.name} is of type {column.type}: give a column of dates or timestamps"
            )
        self._owner = owner
        problem = self._find_problem(older_than)
        if problem:
            raise RegistrationError(f"{owner}: older_than={older_than!r}: {problem}")

    def _find_problem(self, older_than: Any) -> str:
        if not isinstance(older_than, timedelta) or older_than <= timedelta(0):
            return "give a positive timedelta, such as timedelta(days=365)"
        try:
            datetime.now(UTC) - older_than
        except OverflowError:
            return "that is before the year 1"
        return ""

    def condition(self, older_than: timedelta, now: datetime) -> ColumnElement[bool]:
        """Return the condition of the rows that were older than `older_than` at an aware time.

        Raises:
            UsageError: The age is not positive.
        """
        problem = self._find_problem(older_than)
        if problem:
            raise UsageError(f"{self._owner}: older_than={older_than!r}: {problem}")
        limit: Any = (now - older_than).astimezone(UTC)
        if self._kind is date:
            limit = limit.date()
        elif not self._is_aware:
            limit = limit.replace(tzinfo=None)
        condition: ColumnElement[bool] = self._attribute < limit
        return condition
