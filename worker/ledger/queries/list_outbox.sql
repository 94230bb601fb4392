-- List rows of the outbox, newest first. Any role that may write there chooses the times: those that Python does not have,
-- such as infinity, are left out.
SELECT id, run_id, job, queue, priority,
       CASE WHEN due_at BETWEEN timestamptz '1970-01-01 00:00+00' AND timestamptz '9999-12-30 00:00+00'
            THEN due_at END AS due_at,
       LEAST(GREATEST(created_at, timestamptz '1970-01-01 00:00+00'), clock_timestamp()) AS created_at, problem
  FROM worker.outbox
 WHERE (CAST(:before AS bigint) IS NULL OR id < :before)
   AND (NOT CAST(:refused AS boolean) OR problem IS NOT NULL)
   AND (CAST(:search AS text) IS NULL
        OR pg_catalog.strpos(pg_catalog.lower(pg_catalog.concat_ws(' ', run_id, job, queue, problem)),
                             pg_catalog.lower(CAST(:search AS text))) > 0)
 ORDER BY id DESC
 LIMIT :limit
