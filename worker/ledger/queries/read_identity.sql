-- Return what distinguishes this database from all others, also from those of other servers.
SELECT control.system_identifier || '.' || database.oid AS identity
FROM pg_catalog.pg_control_system() AS control, pg_catalog.pg_database AS database
WHERE database.datname = pg_catalog.current_database()
