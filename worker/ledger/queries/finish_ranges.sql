-- End a step that was walked in ranges, and add their sums to it. Returns no row if another worker owns the run.
UPDATE worker.step
   SET done = true, rows = step.rows + sums.rows, batches = step.batches + sums.batches,
       updated_at = pg_catalog.clock_timestamp()
  FROM (SELECT coalesce(pg_catalog.sum(rows), 0)::bigint AS rows,
               coalesce(pg_catalog.sum(batches), 0)::bigint AS batches
          FROM worker.step_range
         WHERE run_id = :run_id AND step = :step) AS sums
 WHERE step.run_id = :run_id AND step.name = :step AND step.fence = :fence AND NOT step.done
RETURNING step.rows, step.batches
