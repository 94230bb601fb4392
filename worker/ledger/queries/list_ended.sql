-- List the runs that ended last, without helper runs. The index of ended runs has their order.
SELECT run.id, run.job, run.state, run.attempt, run.error, run.created_at AS began_at, run.finished_at,
       (SELECT coalesce(pg_catalog.sum(step.rows), 0)::bigint FROM worker.step WHERE step.run_id = run.id) AS rows
  FROM worker.run
 WHERE run.finished_at IS NOT NULL AND run.parent IS NULL
 ORDER BY run.finished_at DESC, run.id DESC
 LIMIT :limit
