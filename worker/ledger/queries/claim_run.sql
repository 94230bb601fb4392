-- Begin a run, or take it over: the fence grows, so that nobody who had it before can commit any more.
-- No row comes back when the run has ended, or is one of another job or with other arguments.
INSERT INTO worker.run AS run
       (id, job, queue, payload, arguments, state, fence, owner, attempt, batches_before, started_at)
VALUES (:id, :job, :queue, :payload, :arguments, 'running', 1, :owner, 1, 0, clock_timestamp())
ON CONFLICT (id) DO UPDATE
   SET fence = run.fence + 1,
       owner = :owner,
       queue = :queue,
       payload = :payload,
       started_at = clock_timestamp(),
       updated_at = clock_timestamp()
 WHERE run.finished_at IS NULL AND run.job = :job AND run.arguments = :arguments
RETURNING fence, attempt, batches_before, takeovers, backend_pid, backend_start,
          state AS state_before, fence = 1 AS is_new
