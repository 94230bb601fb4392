-- List runs with the sums of their steps, newest first. Rows in quarantine are counted to 1,000 for each run.
SELECT run.id, run.job, run.queue, run.state, run.owner, run.attempt, run.takeovers, run.error, run.result, run.parent,
       run.created_at, run.started_at, run.finished_at,
       greatest(run.updated_at, pg_catalog.max(step.updated_at), pg_catalog.max(sums.updated_at)) AS updated_at,
       coalesce(pg_catalog.sum(step.rows + CASE WHEN step.done THEN 0 ELSE coalesce(sums.rows, 0) END), 0)::bigint
           AS rows,
       coalesce(pg_catalog.sum(step.batches + CASE WHEN step.done THEN 0 ELSE coalesce(sums.batches, 0) END), 0)::bigint
           AS batches,
       pg_catalog.sum(step.total)::bigint AS total,
       (SELECT pg_catalog.count(*)
          FROM (SELECT FROM worker.quarantine WHERE quarantine.run_id = run.id LIMIT 1000) AS held) AS quarantined
  FROM worker.run
  LEFT JOIN worker.step ON step.run_id = run.id
  LEFT JOIN LATERAL (SELECT pg_catalog.sum(step_range.rows) AS rows, pg_catalog.sum(step_range.batches) AS batches,
                            pg_catalog.max(step_range.updated_at) AS updated_at
                       FROM worker.step_range
                      WHERE step_range.run_id = step.run_id AND step_range.step = step.name) AS sums ON true
 WHERE (run.id = ANY(CAST(:ids AS text[])) OR (CAST(:ids AS text[]) IS NULL AND run.parent IS NULL))
   AND (CAST(:job AS text) IS NULL OR run.job = :job)
   AND (CAST(:state AS text) IS NULL OR run.state = :state)
   AND (CAST(:search AS text) IS NULL
        OR pg_catalog.strpos(pg_catalog.lower(pg_catalog.concat_ws(' ', run.id, run.job, run.arguments, run.error)),
                             pg_catalog.lower(CAST(:search AS text))) > 0)
   AND (CAST(:before_at AS timestamptz) IS NULL OR (run.created_at, run.id) < (:before_at, CAST(:before_id AS text)))
 GROUP BY run.id
 ORDER BY run.created_at DESC, run.id DESC
 LIMIT :limit
