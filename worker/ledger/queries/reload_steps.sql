-- Read the steps of a run again, for an owner that does not know whether its last COMMIT took effect.
-- Returns no row if another worker owns the run; one row without a step if the run has no steps.
SELECT step.name, step.position, step.kind, step.statement, step.key, step.cursor, step.upper_bound, step.rows,
       step.batches, step.total, step.done, step.pace, step.code_version,
       (SELECT pg_catalog.count(*) FROM worker.step_range
         WHERE step_range.run_id = step.run_id AND step_range.step = step.name)::int AS ranges
  FROM worker.run
  LEFT JOIN worker.step ON step.run_id = run.id
 WHERE run.id = :id AND run.fence = :fence
