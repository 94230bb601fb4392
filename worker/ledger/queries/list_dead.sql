-- List dead runs, newest first.
SELECT id, job, queue, attempt, error, traceback, payload, finished_at
  FROM worker.run
 WHERE state = 'dead' AND parent IS NULL
   AND (CAST(:ids AS text[]) IS NULL OR id = ANY(CAST(:ids AS text[])))
   AND (CAST(:job AS text) IS NULL OR job = :job)
   AND (CAST(:before AS timestamptz) IS NULL OR finished_at < :before)
 ORDER BY finished_at DESC, id
 LIMIT :limit
