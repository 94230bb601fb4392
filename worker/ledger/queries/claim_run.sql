-- Insert a new run, or take an unfinished one over. The fence grows, so that a former owner can no longer commit.
-- Returns no row if the run has finished, or belongs to another job, or has other arguments.
INSERT INTO worker.run AS run
       (id, job, queue, payload, arguments, state, fence, owner, attempt, batches_before, parent, parent_fence,
        started_at, backend_pid, backend_start)
SELECT :id, :job, :queue, :payload, :arguments, 'running', 1, :owner, 1, 0, :parent, CAST(:parent_fence AS bigint),
       pg_catalog.clock_timestamp(), backend.pid, backend.backend_start
  FROM (SELECT) AS new
  LEFT JOIN pg_catalog.pg_stat_activity AS backend ON backend.pid = pg_catalog.pg_backend_pid() AND NOT :is_pooled
ON CONFLICT (id) DO UPDATE
   SET fence = run.fence + 1,
       owner = :owner,
       queue = :queue,
       payload = :payload,
       started_at = pg_catalog.clock_timestamp(),
       updated_at = pg_catalog.clock_timestamp()
 WHERE run.finished_at IS NULL AND run.job = :job AND run.arguments = :arguments
RETURNING fence, attempt, batches_before, takeovers, backend_pid, backend_start, steps,
          state AS state_before, fence = 1 AS is_new,
          EXISTS (SELECT FROM worker.step_range WHERE step_range.owner = run.id) AS has_ranges
