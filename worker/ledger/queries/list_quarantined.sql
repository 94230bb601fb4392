-- List quarantined rows, newest first.
SELECT quarantine.id, quarantine.run_id, run.job, quarantine.step, quarantine.key, quarantine.error,
       quarantine.traceback, quarantine.row, quarantine.created_at
  FROM worker.quarantine
  JOIN worker.run ON run.id = quarantine.run_id
 WHERE (CAST(:run_id AS text) IS NULL OR quarantine.run_id = :run_id)
   AND (CAST(:ids AS bigint[]) IS NULL OR quarantine.id = ANY (:ids))
   AND (CAST(:before AS bigint) IS NULL OR quarantine.id < :before)
   AND (CAST(:job AS text) IS NULL OR run.job = :job)
   AND (CAST(:search AS text) IS NULL
        OR pg_catalog.strpos(pg_catalog.lower(pg_catalog.concat_ws(' ', quarantine.run_id, run.job, quarantine.key,
                                                                   quarantine.error, quarantine.row)),
                             pg_catalog.lower(CAST(:search AS text))) > 0)
 ORDER BY quarantine.id DESC
 LIMIT :limit
