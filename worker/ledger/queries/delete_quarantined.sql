-- Delete quarantined rows by run, by id, or by both.
DELETE FROM worker.quarantine
 WHERE (CAST(:run_id AS text) IS NULL OR run_id = :run_id)
   AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(CAST(:ids AS bigint[])))
