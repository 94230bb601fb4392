-- List the steps of a run, in their order.
SELECT name, position, kind, statement, key, cursor, upper_bound,
       CASE WHEN done THEN step.rows ELSE step.rows + coalesce(sums.rows, 0) END AS rows,
       CASE WHEN done THEN step.batches ELSE step.batches + coalesce(sums.batches, 0) END AS batches,
       total, done, pace, code_version, sums.ranges, result, started_at, updated_at
  FROM worker.step,
       LATERAL (SELECT pg_catalog.sum(step_range.rows)::bigint AS rows,
                       pg_catalog.sum(step_range.batches)::bigint AS batches,
                       pg_catalog.count(*)::int AS ranges
                  FROM worker.step_range
                 WHERE step_range.run_id = step.run_id AND step_range.step = step.name) AS sums
 WHERE run_id = :run_id
 ORDER BY position
