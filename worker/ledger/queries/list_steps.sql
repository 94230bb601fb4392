-- List the steps of a run, in their order.
SELECT name, position, kind, statement, key, cursor, upper_bound, rows, batches, total, done, pace, code_version,
       result, started_at, updated_at
  FROM worker.step
 WHERE run_id = :run_id
 ORDER BY position
