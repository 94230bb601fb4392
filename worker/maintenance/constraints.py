"""`validate_constraint`: a job that adds a constraint without a long lock, and validates it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import CheckConstraint, Constraint, ForeignKeyConstraint, Table, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import AddConstraint, ExecutableDDLElement

from worker.errors import NonRetryableError, RegistrationError, UsageError, format_error
from worker.job.decorator import JobKeywords
from worker.job.definition import Job
from worker.maintenance.definition import Definition
from worker.maintenance.target import Target

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

#: Seconds for which adding a constraint waits for its lock, while it holds up others. Then the attempt fails.
_LOCK_TIMEOUT_SECONDS = 3
#: Validation reads the whole table.
_TIMEOUT_SECONDS = 86_400.0

_FIND = text("""
SELECT convalidated
  FROM pg_catalog.pg_constraint
 WHERE conrelid = pg_catalog.to_regclass(CAST(:table AS text)) AND conname = :name AND contype IN ('c', 'f', 'n')
""")
_LIST = text("""
SELECT coalesce(pg_catalog.array_agg(conname::text ORDER BY conname), '{}')
  FROM pg_catalog.pg_constraint
 WHERE conrelid = pg_catalog.to_regclass(CAST(:table AS text)) AND contype IN ('c', 'f', 'n')
""")
_EXISTS = text("SELECT pg_catalog.to_regclass(CAST(:table AS text)) IS NOT NULL")


class AddNotValid(AddConstraint):
    """ALTER TABLE ... ADD CONSTRAINT ... NOT VALID: new rows are checked, existing ones are not read."""

    inherit_cache = False


@compiles(AddNotValid)
def _compile_add(element: AddNotValid, compiler: Any, **options: Any) -> str:
    added = str(compiler.visit_add_constraint(element, **options))
    return added if added.endswith(" NOT VALID") else f"{added} NOT VALID"


class Validate(ExecutableDDLElement):
    """ALTER TABLE ... VALIDATE CONSTRAINT: existing rows are read; other sessions read and write meanwhile."""

    inherit_cache = False

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name


@compiles(Validate)
def _compile_validate(element: Validate, compiler: Any, **options: Any) -> str:
    preparer = compiler.preparer
    return f"ALTER TABLE {preparer.format_table(element.table)} VALIDATE CONSTRAINT {preparer.quote(element.name)}"


def validate_constraint(entity: Any, constraint: str, **options: Unpack[JobKeywords]) -> Job[..., bool]:
    """Return a job that makes a constraint hold: `validate_age = validate_constraint(User, "user_age_is_positive")`.

    If the database does not have the constraint, it is added as the model declares it, NOT VALID: that takes a moment,
    and from then on new rows are checked. Then it is validated, which reads the table while others write. A run that is
    attempted again continues with the part that is missing.

    Args:
        entity: A mapped class or a `Table`.
        constraint: The name of a CHECK or FOREIGN KEY constraint, of the model or of the database.
        **options: The options of `@job`. Default of `name`: the variable that the job is assigned to; of `timeout`:
            a day.

    Returns:
        A job, which returns True if it has validated the constraint, and False if it was valid before.

    Raises:
        RegistrationError: An argument is invalid. The job raises `UsageError` if neither model nor database have the
            constraint, and `NonRetryableError` if rows violate it.
    """
    if not isinstance(constraint, str) or not constraint:
        raise RegistrationError(f"validate_constraint: constraint={constraint!r}: give the name of a constraint")
    options.setdefault("timeout", _TIMEOUT_SECONDS)
    definition = Definition("validate_constraint", entity, options, default_name=f"validate_{constraint}")
    target = definition.target
    declared = _find_declared(target, constraint)

    async def validate(ctx: JobContext) -> bool:
        async with ctx.transaction() as session:
            is_valid = await session.scalar(_FIND, {"table": target.name, "name": constraint})
            if is_valid:
                return False
            if is_valid is None:
                await _add(session, target, constraint, declared)
        async with ctx.transaction() as session:
            # It reads the whole table, and holds up no reader and no writer.
            await session.execute(text("SET LOCAL statement_timeout = 0"))
            try:
                await session.execute(Validate(target.table, constraint))
            except IntegrityError as error:
                raise NonRetryableError(
                    f"{target.owner}: rows of {target.name} violate {constraint}: {format_error(error)}. New rows are "
                    f"checked. Correct these rows, and enqueue the job again"
                ) from error
        return True

    return definition.make_job(validate, f"Validate {constraint} of {target.name}.")


def _find_declared(target: Target, name: str) -> Constraint | None:
    """Return a constraint of the model; None if it has none of that name.

    Raises:
        RegistrationError: It is a constraint that PostgreSQL cannot add without reading the rows.
    """
    for each in target.table.constraints:
        if each.name == name:
            if not isinstance(each, CheckConstraint | ForeignKeyConstraint):
                raise RegistrationError(
                    f"{target.owner}: {name} is a {type(each).__name__}: only CHECK and FOREIGN KEY can be NOT VALID. "
                    f"Create the index of a unique one with CREATE INDEX CONCURRENTLY"
                )
            return each
    return None


async def _add(session: AsyncSession, target: Target, name: str, declared: Constraint | None) -> None:
    if declared is None:
        await _raise_not_found(session, target, name)
        return
    await session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'"))
    try:
        await session.execute(AddNotValid(declared, isolate_from_table=False))
    except DBAPIError as error:
        if "lock timeout" in str(error.orig):
            error.add_note(
                f"{target.owner}: {target.name} was locked for {_LOCK_TIMEOUT_SECONDS} s; the next attempt tries again"
            )
        raise


async def _raise_not_found(session: AsyncSession, target: Target, name: str) -> None:
    known: Sequence[str] = await session.scalar(_LIST, {"table": target.name}) or []
    if not await session.scalar(_EXISTS, {"table": target.name}):
        raise UsageError(
            f"{target.owner}: there is no table {target.name} in the database: create it with your own migrations"
        )
    raise UsageError(
        f"{target.owner}: neither the model nor the database have a constraint {name} of {target.name}; the database "
        f"has {', '.join(known) or 'none'}"
    )
