-- An operator wants the run again: from its last checkpoint. The fence grows, so that a late word of its last owner,
-- who may still be telling of its end, changes nothing.
UPDATE worker.run
   SET state = 'waiting', fence = fence + 1, attempt = 1, error = NULL, traceback = NULL, result = NULL, finished_at = NULL,
       batches_before = (SELECT coalesce(sum(batches), 0) FROM worker.step WHERE run_id = :id),
       updated_at = clock_timestamp()
 WHERE id = :id AND finished_at IS NOT NULL
RETURNING job, queue, payload
