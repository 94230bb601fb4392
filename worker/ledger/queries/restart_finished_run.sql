-- Replace a finished run by a new run with the same id, which starts from its first row.
WITH deleted AS (
    DELETE FROM worker.step WHERE run_id = :id
),
forgotten AS (
    DELETE FROM worker.sample WHERE run_id = :id
)
UPDATE worker.run
   SET job = :job, queue = :queue, payload = :payload, arguments = :arguments, state = 'running', fence = fence + 1,
       owner = :owner, attempt = 1, batches_before = 0, takeovers = 0, steps = 0, result = NULL, error = NULL, traceback = NULL,
       backend_pid = NULL, backend_start = NULL, finished_at = NULL, created_at = pg_catalog.clock_timestamp(),
       started_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id AND finished_at IS NOT NULL
RETURNING fence, attempt, batches_before, takeovers, backend_pid, backend_start, steps,
          'waiting' AS state_before, true AS is_new, false AS has_ranges
