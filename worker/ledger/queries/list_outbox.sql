-- List rows of the outbox, newest first.
SELECT id, run_id, job, queue, priority, due_at, created_at, problem
  FROM worker.outbox
 WHERE (CAST(:before AS bigint) IS NULL OR id < :before)
   AND (NOT CAST(:refused AS boolean) OR problem IS NOT NULL)
   AND (CAST(:search AS text) IS NULL
        OR pg_catalog.strpos(pg_catalog.lower(pg_catalog.concat_ws(' ', run_id, job, queue, problem)),
                             pg_catalog.lower(CAST(:search AS text))) > 0)
 ORDER BY id DESC
 LIMIT :limit
