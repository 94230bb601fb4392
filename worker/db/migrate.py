"""`worker migrate`, and the check that a worker makes before it starts."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from worker.db.engine import Database
from worker.db.tables import SCHEMA
from worker.errors import DatabaseNotMigrated

_LOCK = 0x6C6F6E67_6861756C  # "longhaul": two `worker migrate` at once wait for each other


async def migrate(database: Database, revision: str = "head") -> str:
    """Bring the schema `worker` to `revision`, in one transaction.

    Returns:
        The revision that the database has now.
    """
    async with database.connection() as connection:
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
        await connection.execute(text("SET LOCAL lock_timeout = 0"))
        await connection.execute(text("SELECT pg_catalog.pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        # The catalog itself, not to_regnamespace(): a backend refreshes its cache of missing schemas only when it locks
        # a relation, and another `worker migrate` may have created the schema while we waited.
        made = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = :name)"
        if not await connection.scalar(text(made), {"name": SCHEMA}):
            await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        await connection.run_sync(_upgrade, revision)
        return str(await connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.schema_version")))  # noqa: S608


async def check_migrated(database: Database) -> None:
    """Raise `DatabaseNotMigrated` unless the database has the tables that this worker writes.

    A database that is newer than the worker passes: a roll-back of the code must not stop the work.
    """
    script = ScriptDirectory.from_config(_config())
    async with database.connection() as connection:
        exists = await connection.scalar(
            text("SELECT pg_catalog.to_regclass(:name)"), {"name": f"{SCHEMA}.schema_version"}
        )
        found = (
            await connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.schema_version"))  # noqa: S608
            if exists
            else None
        )
    ours = [revision.revision for revision in script.walk_revisions()]
    if found is None or (found in ours and found != script.get_current_head()):
        raise DatabaseNotMigrated(
            f"the database has ledger schema {found or 'none'}, this worker needs {script.get_current_head()}: "
            f"run `worker migrate`"
        )


def _config() -> Config:
    config = Config()
    # Alembic reads its options through ConfigParser, where % begins an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def _upgrade(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
