-- Reopen a finished run, which resumes from its last checkpoint. The fence grows, so that its last owner, which may
-- still be recording the run's end, matches no row.
WITH reopened AS (
    UPDATE worker.step_range
       SET owner = NULL, owner_fence = NULL, error = NULL, fence = fence + 1
     WHERE run_id = :id AND error IS NOT NULL
       AND EXISTS (SELECT FROM worker.run WHERE id = :id AND finished_at IS NOT NULL)
)
UPDATE worker.run
   SET state = 'waiting', fence = fence + 1, attempt = 1, error = NULL, traceback = NULL, result = NULL,
       finished_at = NULL, updated_at = pg_catalog.clock_timestamp(),
       batches_before = (SELECT coalesce(pg_catalog.sum(batches), 0) FROM worker.step WHERE run_id = :id)
 WHERE id = :id AND finished_at IS NOT NULL
RETURNING job, queue, payload
