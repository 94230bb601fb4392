-- Forget rows that were set aside: somebody has seen to them.
DELETE FROM worker.quarantine
 WHERE (CAST(:run_id AS text) IS NULL OR run_id = :run_id)
   AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(CAST(:ids AS bigint[])))
