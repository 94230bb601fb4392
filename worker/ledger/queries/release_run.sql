-- The run goes back to the queue: drained, paused, or to be tried again.
UPDATE worker.run
   SET state = :state, attempt = :attempt, batches_before = :batches, error = :error, traceback = :traceback,
       backend_pid = NULL, backend_start = NULL, updated_at = clock_timestamp()
 WHERE id = :id AND fence = :fence
