"""`worker migrate`, and the check that a worker makes before it starts.

Revisions are four digits and grow. A migration normally only adds, so that workers of the version before it keep
working: an older worker accepts a ledger with a newer revision. A migration that breaks older workers sets the comment
of the schema to `oldest-revision=NNNN`, the oldest revision that a worker has to know.
"""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.db.engine import Database
from worker.db.tables import SCHEMA
from worker.errors import DatabaseNotMigrated

if TYPE_CHECKING:
    # Alembic is imported where it is used: it takes a third of a worker's start, and only a migration needs it.
    from alembic.config import Config

logger = logging.getLogger("longhaul.migrate")

_MIGRATIONS = Path(__file__).parent / "migrations"
_OLDEST = re.compile(r"oldest-revision=(\w+)")
_LOCK = 0x6C6F6E67_6861756C  # "longhaul": two `worker migrate` at once wait for each other


async def migrate(database: Database, revision: str = "head") -> str:
    """Upgrade the schema `worker` to `revision`, in one transaction. A newer schema stays as it is.

    Returns:
        The revision that the database has now.

    Raises:
        DatabaseNotMigrated: The schema is newer, and its workers have to be newer as well.
    """
    async with database.connection() as connection:
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
        await connection.execute(text("SET LOCAL lock_timeout = 0"))
        await connection.execute(text("SELECT pg_catalog.pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found = await _read_revision(connection)
        if found is not None and found not in known_revisions():
            await _check_newer(connection, found)
            logger.info("ledger schema is newer than this version, nothing to do: revision=%s", found)
            return found
        # The catalog itself, not to_regnamespace(): a backend refreshes its cache of missing schemas only when it locks
        # a relation, and another `worker migrate` may have created the schema while we waited.
        made = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = :name)"
        if not await connection.scalar(text(made), {"name": SCHEMA}):
            await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        await connection.run_sync(_upgrade, revision)
        return str(await connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.schema_version")))  # noqa: S608


async def check_migrated(database: Database) -> None:
    """Raise `DatabaseNotMigrated` unless the database has the tables that this worker writes.

    A newer database passes unless its schema says otherwise: a roll-back of the code must not stop the work.
    """
    async with database.connection() as connection:
        found = await _read_revision(connection)
        ours = known_revisions()
        if found is not None and found not in ours:
            await _check_newer(connection, found)
            return
    if found != ours[0]:
        raise DatabaseNotMigrated(
            f"the database has ledger schema {found or 'none'}, this worker needs {ours[0]}: run `worker migrate`"
        )


def known_revisions() -> list[str]:
    """Return the revisions that this version knows, newest first."""
    names = (path.stem for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
    return sorted((name.split("_")[0] for name in names), reverse=True)


def migration_sql(revision: str = "head") -> str:
    """Return the SQL of all migrations up to `revision`, for a database that has none of them."""
    from alembic import command

    buffer = io.StringIO()
    config = _config()
    config.output_buffer = buffer
    command.upgrade(config, revision, sql=True)
    return f"CREATE SCHEMA IF NOT EXISTS {SCHEMA};\n\n{buffer.getvalue()}"


async def _read_revision(connection: AsyncConnection) -> str | None:
    """Return the revision of the ledger, or None if there is no ledger."""
    # The catalog itself, and not to_regclass(): a backend caches that a schema did not exist until it locks a relation.
    exists = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = :schema AND tablename = :table)"
    if not await connection.scalar(text(exists), {"schema": SCHEMA, "table": "schema_version"}):
        return None
    found: str | None = await connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.schema_version"))  # noqa: S608
    return found


async def _check_newer(connection: AsyncConnection, found: str) -> None:
    """Raise `DatabaseNotMigrated` if workers that do not know the revision of the schema cannot use it."""
    comment = (
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = :name"
    )
    oldest = _OLDEST.search(await connection.scalar(text(comment), {"name": SCHEMA}) or "")
    if oldest is not None and oldest[1] > known_revisions()[0]:
        raise DatabaseNotMigrated(
            f"the database has ledger schema {found}, which needs workers that know {oldest[1]}; this one knows "
            f"{known_revisions()[0]}: deploy the newer version"
        )


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # Alembic reads its options through ConfigParser, where % begins an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
