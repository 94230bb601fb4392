"""Alembic's environment: run by `worker.db.migrate` on a connection that it hands over."""

from alembic import context

from worker.db.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="schema_version",
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=lambda name, type_, parents: type_ != "schema" or name == SCHEMA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
