-- End the connection of a former owner that may be frozen inside a transaction and hold locks on our rows.
-- The start time distinguishes that backend from a later one with the same process id.
SELECT pg_catalog.pg_terminate_backend(pid)
  FROM pg_catalog.pg_stat_activity
 WHERE pid = :pid AND backend_start = :started AND pid <> pg_catalog.pg_backend_pid()
