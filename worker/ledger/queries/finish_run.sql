-- The run has ended. The fence keeps a worker that was replaced from ending what another one runs.
UPDATE worker.run
   SET state = :state, result = CAST(:result AS jsonb), error = :error, traceback = :traceback,
       backend_pid = NULL, backend_start = NULL,
       finished_at = clock_timestamp(), updated_at = clock_timestamp()
 WHERE id = :id AND fence = :fence
