"""`purge`: a job that deletes old or unwanted rows, with their children."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from sqlalchemy import delete, select

from worker.batch.sizing import Size
from worker.errors import RegistrationError, UsageError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.condition_reads import find_dependence
from worker.maintenance.definition import Definition
from worker.maintenance.foreign_keys import Children, read_children
from worker.maintenance.rows import make_job_for_rows
from worker.maintenance.target import Condition, Pace, Target, list_keys, match_keys, table_name

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

logger = logging.getLogger("longhaul.maintenance")

ChildRows = Literal["first", "with_parents", "leave"]


def purge(
    entity: Any,
    *,
    where: Condition | None = None,
    older_than: timedelta | None = None,
    by: Any = None,
    children: ChildRows = "first",
    key: Any = None,
    size: Size | None = None,
    parallel: int = 1,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that deletes rows: `purge_old = purge(Post, older_than=timedelta(days=365), by=Post.created_at)`.

    Rows that refer to the deleted ones are deleted as well, with the rows that refer to those, by the foreign keys of
    the database. Foreign keys with ON DELETE SET NULL or SET DEFAULT are left to PostgreSQL.

    Args:
        entity: A mapped class or a `Table`.
        where: The condition of the rows, or a function that returns it when the job begins. Give it, or `older_than`,
            or both. For all rows, give `sqlalchemy.true()`.
        older_than: The age of the rows when the run is enqueued; also an argument of the job.
        by: The column with the time of a row. A timestamp without time zone counts as UTC.
        children: "first" deletes the children in walks of their own, each table in batches, before the parents.
            "with_parents" deletes them in the transactions of their parents. "leave" leaves them to the foreign keys.
            Children without a primary key are deleted with their parents, and so are all of them if rows could stay
            without their children: because the condition may read those, or a trigger may keep a row.
        key: A unique, not-null key to walk by. Default: the primary key.
        size: The rows of a batch, as in `ctx.chunks`.
        parallel: The number of runs that walk together; see `ctx.chunks`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows of the table that it has deleted.

    Raises:
        RegistrationError: An argument is invalid. The job raises `UnsupportedStatement` for circular foreign keys, and
            `UsageError` if a trigger, a rule or a policy keeps a row that has children.
    """
    definition = Definition("purge", entity, options)
    target = definition.target
    if children not in get_args(ChildRows):
        given = f"{definition.name}: children={children!r}"
        raise RegistrationError(f"{given}: give {', '.join(map(repr, get_args(ChildRows)))}")
    rows = _Rows(target, children, key, size=size, parallel=parallel)
    summary = f"Delete rows of {target.name}, with the rows that refer to them."
    return make_job_for_rows(definition, rows.delete, where=where, older_than=older_than, by=by, summary=summary)


class _Rows:
    """The rows to delete, and how."""

    def __init__(self, target: Target, children: ChildRows, key: Any, **pace: Unpack[Pace]) -> None:
        self._target = target
        self._key = target.attributes(target.find_key(key))
        self._pace = pace
        self._children = children

    async def delete(self, ctx: JobContext, condition: Any) -> int:
        """Delete the rows with a condition. Returns their number."""
        if self._children != "leave":
            children = await read_children(ctx, self._target)
            if children.tables:
                return await self._delete_with_children(ctx, condition, children)
        rows = delete(self._target.entity).where(condition)
        return await ctx.sweep(rows, by=self._key, name=f"purge {self._target.name}", **self._pace)

    async def _delete_with_children(self, ctx: JobContext, condition: Any, children: Children) -> int:
        deleted_children = 0
        if self._children == "first" and not await self._must_delete_together(ctx, condition, children):
            for table in children.walkable:  # the others are deleted with their parents
                swept = delete(table).where(children.condition(table, condition))
                deleted_children += await ctx.sweep(swept, name=f"purge {table_name(table)}", **self._pace)
        parents: Any = select(*self._key).where(condition)
        name = f"purge {self._target.name}"
        async for batch in ctx.chunks(parents, by=self._key, name=name, **self._pace):
            await self._delete_batch(batch.session, list_keys(batch), children)
        return ctx.rows_done - deleted_children

    async def _must_delete_together(self, ctx: JobContext, condition: Any, children: Children) -> bool:
        """Return whether a parent could stay although its children were deleted before it."""
        reason: str | None = "a part of the rows is selected"
        if not await ctx._has_selection():
            async with ctx.session() as session:
                reason = await find_dependence(await session.connection(), self._target, condition, children.tables)
        if reason is not None:
            words = "children are deleted with their parents: job=%s reason=%r"
            logger.info(words, self._target.owner, reason)
        return reason is not None

    async def _delete_batch(self, session: Any, keys: Sequence[Any], children: Children) -> None:
        chosen = match_keys(self._key, keys)
        for table in children.tables:  # also children that were inserted since, which would prevent the DELETE
            await session.execute(delete(table).where(children.condition(table, chosen)))
        rows = delete(self._target.entity).where(chosen).execution_options(synchronize_session=False)
        deleted = (await session.execute(rows)).rowcount
        if deleted != len(keys):
            raise UsageError(
                f"{self._target.owner}: of {len(keys)} rows, {deleted} were deleted: a trigger, a rule or a policy of "
                f"{self._target.name} keeps the others. The batch is rolled back, with the children of its rows"
            )
