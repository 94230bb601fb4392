-- List the steps of a run, in their order.
SELECT name, position, kind, statement, key, cursor, upper_bound, rows, batches, total, done, pace
  FROM worker.step
 WHERE run_id = :run_id
 ORDER BY position
