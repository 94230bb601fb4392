-- Add a sample of a step. The newest counts are those of the ledger.
INSERT INTO worker.sample (run_id, step, attempt, rows, batches, seconds)
SELECT run_id, name, :attempt, step.rows + CASE WHEN step.done THEN 0 ELSE ranges.rows END,
       step.batches + CASE WHEN step.done THEN 0 ELSE ranges.batches END, CAST(:seconds AS jsonb)
  FROM worker.step
 CROSS JOIN (SELECT coalesce(pg_catalog.sum(rows), 0)::bigint AS rows, coalesce(pg_catalog.sum(batches), 0)::bigint AS batches
               FROM worker.step_range WHERE run_id = :run_id AND step = :step) AS ranges
 WHERE run_id = :run_id AND name = :step
