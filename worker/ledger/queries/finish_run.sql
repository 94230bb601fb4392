-- Record the end of a run. The fence keeps a replaced worker from ending a run that another one owns. A repetition, by
-- an owner that does not know whether its COMMIT took effect, changes nothing.
UPDATE worker.run
   SET state = :state, result = CAST(:result AS jsonb), error = :error, traceback = :traceback,
       backend_pid = NULL, backend_start = NULL,
       finished_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id AND fence = :fence AND (finished_at IS NULL OR state = :state)
