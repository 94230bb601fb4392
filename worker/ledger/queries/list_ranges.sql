-- List the ranges of a run, in the order of its walks.
SELECT step_range.step, step_range.number, step_range.lower, step_range.upper, step_range.cursor, step_range.rows,
       step_range.batches, step_range.done, step_range.owner, step_range.error, step_range.started_at,
       step_range.updated_at, step_range.partition
  FROM worker.step_range
  JOIN worker.step ON step.run_id = step_range.run_id AND step.name = step_range.step
 WHERE step_range.run_id = :run_id
 ORDER BY step.position, step_range.number
