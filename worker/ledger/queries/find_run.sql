-- What the ledger knows of one run, for a job that comes again.
SELECT job, queue, state, result, error, payload, arguments, backend_pid, backend_start, finished_at IS NOT NULL AS finished, fence, attempt, batches_before
  FROM worker.run
 WHERE id = :id
