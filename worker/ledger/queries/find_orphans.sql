-- Find unfinished runs that have not been touched for a while, in pages. The caller enqueues the runs that Redis has
-- lost again.
SELECT run.id, run.job, run.queue, run.payload, run.updated_at
  FROM worker.run
 WHERE run.finished_at IS NULL
   AND greatest(run.updated_at,
                coalesce((SELECT pg_catalog.max(updated_at) FROM worker.step WHERE run_id = run.id), run.updated_at),
                coalesce((SELECT pg_catalog.max(updated_at) FROM worker.step_range WHERE owner = run.id), run.updated_at))
       < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => :idle_seconds)
   AND (run.updated_at, run.id) > (cast(:after_at AS timestamptz), cast(:after_id AS text))
 ORDER BY run.updated_at, run.id
 LIMIT :limit
