-- End the connection of a former owner that may be frozen inside a transaction, with locks on our rows.
-- The start time tells that backend from a later one that was given the same process id.
SELECT pg_terminate_backend(pid)
  FROM pg_stat_activity
 WHERE pid = :pid AND backend_start = :started AND pid <> pg_backend_pid()
