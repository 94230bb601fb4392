-- Unfinished runs that nobody has touched for a while: those that Redis has forgotten are put back.
SELECT run.id, run.job, run.queue, run.payload, run.state
  FROM worker.run
 WHERE run.finished_at IS NULL
   AND greatest(run.updated_at, coalesce((SELECT max(updated_at) FROM worker.step WHERE run_id = run.id),
                                         run.updated_at))
       < clock_timestamp() - make_interval(secs => :idle_seconds)
 ORDER BY run.updated_at
 LIMIT :limit
