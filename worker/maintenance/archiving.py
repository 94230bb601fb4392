"""`archive`: a job that moves rows into another table, a transaction for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import Column, Table, delete, insert, select

from worker.batch.sizing import Size
from worker.errors import RegistrationError, UsageError
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.column_types import ensure_values_stay, read_tables
from worker.maintenance.definition import Definition
from worker.maintenance.foreign_keys import ensure_no_children
from worker.maintenance.rows import make_job_for_rows
from worker.maintenance.target import Condition, Pace, Target, find_target, list_keys, match_keys, table_name

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


def archive(
    entity: Any,
    into: Any,
    *,
    where: Condition | None = None,
    older_than: timedelta | None = None,
    by: Any = None,
    key: Any = None,
    size: Size | None = None,
    parallel: int = 1,
    **options: Unpack[JobKeywords],
) -> Job[..., int]:
    """Return a job that moves rows: `archive_posts = archive(Post, ArchivedPost, where=Post.is_hidden)`.

    Each batch is copied and deleted in one transaction, with its rows locked: a row is in one of the two tables at any
    time, and no concurrent change is lost. All columns of the database are copied, also those that the model lacks.

    Args:
        entity: A mapped class or a `Table`.
        into: The mapped class or `Table` that the rows move into. It has all columns of the table, by their names.
        where: The condition of the rows; see `purge`.
        older_than: The age of the rows when the run is enqueued; also an argument of the job.
        by: The column with the time of a row; see `purge`.
        key: A unique, not-null key to walk by. Default: the primary key.
        size: The rows of a batch, as in `ctx.chunks`.
        parallel: The number of runs that walk together; see `ctx.chunks`.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to.

    Returns:
        A job, which returns the number of rows that it has moved.

    Raises:
        RegistrationError: An argument is invalid, or the other table lacks a column. The job raises `UsageError` if the
            table in the database lacks one, and `UnsupportedStatement` if other tables refer to the rows.
    """
    definition = Definition("archive", entity, options)
    target, archived = definition.target, find_target(definition.name, into)
    rows = _Rows(target, archived, key, size=size, parallel=parallel)
    summary = f"Move rows of {target.name} into {archived.name}."
    return make_job_for_rows(definition, rows.move, where=where, older_than=older_than, by=by, summary=summary)


class _Rows:
    """The rows to move, and how."""

    def __init__(self, target: Target, archived: Target, key: Any, **pace: Unpack[Pace]) -> None:
        if target.table is archived.table:
            raise RegistrationError(f"{target.owner}: {target.name} cannot be archived into itself")
        missing = _find_missing_columns(target.table, archived.table)
        if missing:
            raise RegistrationError(
                f"{target.owner}: {archived.name} lacks {', '.join(missing)} of {target.name}: add to it all columns "
                f"that the table has"
            )
        self._target = target
        self._archived = archived
        self._key = target.find_key(key)
        self._pace = pace

    async def move(self, ctx: JobContext, condition: Any) -> int:
        """Move the rows with a condition. Returns their number."""
        await ensure_no_children(ctx, self._target, verb="archived")
        source, archived = await read_tables(ctx, self._target, self._archived)
        _ensure_columns(self._target.owner, source, archived)
        names = [column.name for column in source.columns if archived.columns[column.name].computed is None]
        key = self._target.attributes(self._key)
        async for batch in ctx.chunks(select(*key).where(condition), by=key, **self._pace):
            await self._move_batch(batch.session, source, archived, names, list_keys(batch))
        return ctx.rows_done

    async def _move_batch(
        self, session: Any, source: Table, archived: Table, names: Sequence[str], keys: Sequence[Any]
    ) -> None:
        chosen = match_keys([source.columns[column.name] for column in self._key], keys)
        rows = select(*[source.columns[name] for name in names]).where(chosen)
        copied = (await session.execute(insert(archived).from_select(list(names), rows))).rowcount
        deleted = (await session.execute(delete(source).where(chosen))).rowcount
        if not copied == deleted == len(keys):
            raise UsageError(
                f"{self._target.owner}: of {len(keys)} rows, {copied} were copied and {deleted} deleted: a trigger, a "
                f"rule or a policy of {self._target.name} or {self._archived.name} changes that. "
                f"The batch is rolled back"
            )


def _find_missing_columns(source: Table, into: Table) -> list[str]:
    """Return the names of the columns of a table that another table lacks."""
    known = {column.name for column in into.columns}
    return [column.name for column in source.columns if column.name not in known]


def _ensure_columns(owner: str, source: Table, into: Table) -> None:
    """Raise `UsageError` if a table cannot get all columns of another one, or needs a value for a further one."""
    missing = _find_missing_columns(source, into)
    if missing:
        raise UsageError(
            f"{owner}: table {table_name(into)} of the database lacks {', '.join(missing)} of {table_name(source)}: "
            f"add to it all columns that the table has"
        )
    pairs = [(each, into.columns[each.name]) for each in source.columns]
    ensure_values_stay(owner, into, pairs, f"give these columns the type that they have in {table_name(source)}")
    numbered = [
        each.name for each in into.columns if each.name in source.columns and each.identity and each.identity.always
    ]
    if numbered:
        raise UsageError(
            f"{owner}: {table_name(into)} numbers {', '.join(numbered)} by itself (GENERATED ALWAYS AS IDENTITY): "
            f"declare it BY DEFAULT"
        )
    required = [each.name for each in into.columns if each.name not in source.columns and _needs_value(each)]
    if required:
        raise UsageError(
            f"{owner}: {table_name(source)} has no value for {', '.join(required)} of {table_name(into)}, which cannot "
            f"be null: declare a default"
        )


def _needs_value(column: Column[Any]) -> bool:
    has_value = column.nullable or column.server_default is not None or column.computed or column.identity
    return not has_value
