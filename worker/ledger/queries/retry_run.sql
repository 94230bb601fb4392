-- An operator wants the run again: from its last checkpoint.
UPDATE worker.run
   SET state = 'waiting', attempt = 1, error = NULL, traceback = NULL, result = NULL, finished_at = NULL,
       batches_before = (SELECT coalesce(sum(batches), 0) FROM worker.step WHERE run_id = :id),
       updated_at = clock_timestamp()
 WHERE id = :id AND finished_at IS NOT NULL
RETURNING job, queue, payload
