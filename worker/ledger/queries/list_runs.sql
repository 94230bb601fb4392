-- List runs with the sums of their steps, newest first.
SELECT run.id, run.job, run.queue, run.state, run.owner, run.attempt, run.takeovers, run.error, run.result,
       run.created_at, run.started_at, run.finished_at,
       greatest(run.updated_at, pg_catalog.max(step.updated_at)) AS updated_at,
       coalesce(pg_catalog.sum(step.rows), 0)::bigint AS rows,
       coalesce(pg_catalog.sum(step.batches), 0)::bigint AS batches,
       pg_catalog.sum(step.total)::bigint AS total
  FROM worker.run
  LEFT JOIN worker.step ON step.run_id = run.id
 WHERE (CAST(:id AS text) IS NULL OR run.id = :id)
   AND (CAST(:job AS text) IS NULL OR run.job = :job)
   AND (CAST(:state AS text) IS NULL OR run.state = :state)
 GROUP BY run.id
 ORDER BY run.created_at DESC
 LIMIT :limit
