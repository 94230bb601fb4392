"""Finds the rows that a job has left undone, by the statement of `@job(verify=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, inspect, select

from worker.batch.page import jsonable
from worker.db.engine import Database
from worker.db.statement_internals import read_select_clauses
from worker.errors import UsageError
from worker.job.definition import Job

_SHOWN_KEYS = 5


@dataclass(frozen=True)
class Undone:
    """Rows that a job has left undone.

    Attributes:
        count: Their number.
        keys: The keys of some of them: primary keys of an entity, or the selected columns.
    """

    count: int
    keys: list[Any]

    def describe(self) -> str:
        """Return number and keys in one line."""
        shown = ", ".join(str(key) for key in self.keys)
        return f"incomplete: {self.count} rows are left undone: {shown}" + (
            ", ..." if self.count > len(self.keys) else ""
        )


async def find_undone(database: Database, job: Job[..., Any], arguments: Mapping[str, Any]) -> Undone | None:
    """Return the rows that a job has left undone; None if there are none.

    Args:
        database: The database of the job.
        job: A job with `verify=`.
        arguments: The arguments of the run, in the types of the signature.

    Raises:
        UsageError: `verify=` is neither a select nor returns one.
    """
    verify = job.rules.verify
    statement = verify(**arguments) if not isinstance(verify, Select) and callable(verify) else verify
    if not isinstance(statement, Select):
        raise UsageError(f"job {job.name}: verify= returns {type(statement).__name__}, not a select()")
    async with database.connection() as connection:
        options = statement.get_execution_options()
        found = select(func.count()).select_from(statement.order_by(None).subquery()).execution_options(**options)
        count = int(await connection.scalar(found) or 0)
        if not count:
            return None
        rows = (await connection.execute(_select_keys(statement))).all()
    return Undone(count, [jsonable(row[0] if len(row) == 1 else tuple(row)) for row in rows])


def _select_keys(statement: Select[Any]) -> Select[Any]:
    """Return the select of some primary keys of its entity; of its columns if its rows are no rows of an entity."""
    clauses = read_select_clauses(statement)
    described = statement.column_descriptions[0]
    entity: Any = described.get("entity")
    is_grouped = bool(clauses.group_by) or clauses.having or clauses.distinct or clauses.extended
    if entity is not None and (described["expr"] is entity or not is_grouped):
        inspected: Any = inspect(entity)
        mapper = inspected.mapper
        keys = [getattr(inspected.entity, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
        statement = statement.with_only_columns(*keys, maintain_column_froms=True).order_by(*keys)
    # A second LIMIT would replace the first one.
    found = select(statement.subquery()) if clauses.limit or clauses.offset else statement
    return found.limit(_SHOWN_KEYS)
