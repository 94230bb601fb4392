-- Find one run by its id.
SELECT id, job, queue, state, result, error, payload, arguments, backend_pid, backend_start,
       finished_at IS NOT NULL AS finished, fence, attempt, batches_before
  FROM worker.run
 WHERE id = :id
