-- A run that waits in the queue is cancelled there; the fence grows, so that nobody can go on with it.
UPDATE worker.run
   SET state = 'cancelled', error = :error, fence = fence + 1,
       finished_at = clock_timestamp(), updated_at = clock_timestamp()
 WHERE id = :id AND finished_at IS NULL AND state <> 'running'
