-- Record the number of this attempt, and its backend, if it has a backend of its own.
UPDATE worker.run
   SET state = 'running',
       attempt = :attempt,
       batches_before = :batches,
       takeovers = :takeovers,
       backend_pid = :backend_pid,
       backend_start = (SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = :backend_pid)
 WHERE id = :id AND fence = :fence
