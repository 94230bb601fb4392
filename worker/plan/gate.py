"""Data migrations as the gate of a deploy: `@job(once=True)`, `worker require`, and a check for Alembic.

from worker.plan import require_data_migrations

def upgrade():
    require_data_migrations(op.get_bind(), "backfill_emails")
    op.alter_column("users", "email", nullable=False)
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from worker.errors import LonghaulError
from worker.ledger import MissingMigration
from worker.ledger.queries import query


class DataMigrationMissing(LonghaulError):
    """A data migration that a deploy requires is not done."""

    retryable = False


def require_data_migrations(connection: Connection, *names: str) -> None:
    """Raise unless data migrations are done, in a migration of Alembic.

    Args:
        connection: `op.get_bind()`: a connection to the database that has the ledger.
        names: The names of jobs with `@job(once=True)`.

    Raises:
        DataMigrationMissing: One of them is not done, or the database has no ledger.
    """
    if connection.scalar(text("SELECT pg_catalog.to_regclass('worker.data_migration')")) is None:
        raise DataMigrationMissing("the database has no ledger, or an old one: run `worker migrate`")
    rows = connection.execute(query("find_missing_migrations"), {"names": list(names)})
    missing = [MissingMigration(**row._mapping) for row in rows]
    if missing:
        raise DataMigrationMissing("; ".join(map(describe_missing, missing)))


def describe_missing(missing: MissingMigration) -> str:
    """Return the state of a data migration that is not done, and what to do."""
    name = missing.name
    if missing.state is None:
        return f"data migration {name} has not begun: worker enqueue {name}"
    if missing.state in ("dead", "cancelled", "incomplete"):
        return f"data migration {name} is {missing.state}: {missing.error or 'no error'}: worker retry {name}"
    rows = "" if missing.rows is None else f", with {missing.rows} rows done"
    return f"data migration {name} is {missing.state}{rows}: wait for its end"
