"""Alembic's environment: `worker.db.migrate` runs it, on a separate connection or to print SQL."""

from alembic import context

from worker.db.tables import SCHEMA, metadata

target = (
    {"dialect_name": "postgresql", "literal_binds": True}
    if context.is_offline_mode()
    else {"connection": context.config.attributes["connection"]}
)
context.configure(
    **target,
    target_metadata=metadata,
    version_table="schema_version",
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=lambda name, type_, parents: type_ != "schema" or name == SCHEMA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
