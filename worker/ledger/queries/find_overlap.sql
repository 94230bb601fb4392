-- Find another unfinished run of a job with the same arguments that walks the same table by the same key.
SELECT run.id
  FROM worker.run
  JOIN worker.step ON step.run_id = run.id
 WHERE run.job = :job AND run.arguments = :arguments AND run.parent IS NULL AND run.finished_at IS NULL
   AND run.id <> :run_id AND NOT step.done AND step.kind = :kind AND step.key = CAST(:key AS jsonb)
 LIMIT 1
