-- Give a run back to the queue: drained, paused, or to be retried. Whether this attempt has made progress is read from
-- the steps, because the worker does not know whether its last COMMIT took effect.
WITH done AS (
    SELECT coalesce(pg_catalog.sum(batches), 0)::bigint AS batches,
           EXISTS (SELECT FROM worker.step_range
                    WHERE owner = :id AND owner_fence = :fence AND batches > batches_before) AS in_ranges
      FROM worker.step WHERE run_id = :id
), released AS (
    -- The ranges that it walks are free for other hands.
    UPDATE worker.step_range
       SET owner = NULL, owner_fence = NULL, fence = fence + 1, updated_at = pg_catalog.clock_timestamp()
     WHERE owner = :id AND owner_fence = :fence AND NOT done
)
UPDATE worker.run
   SET state = :state,
       attempt = CASE WHEN done.in_ranges OR done.batches > CAST(:batches_before AS bigint) THEN 1 ELSE CAST(:attempt AS int) END,
       batches_before = done.batches, error = :error, traceback = :traceback,
       backend_pid = NULL, backend_start = NULL, updated_at = pg_catalog.clock_timestamp()
  FROM done
 WHERE id = :id AND fence = :fence AND finished_at IS NULL
RETURNING attempt
