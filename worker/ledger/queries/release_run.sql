-- Give a run back to the queue: drained, paused, or to be retried.
UPDATE worker.run
   SET state = :state, attempt = :attempt, batches_before = :batches, error = :error, traceback = :traceback,
       backend_pid = NULL, backend_start = NULL, updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id AND fence = :fence
