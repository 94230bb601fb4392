-- List the keys of the quarantined rows of a step, or of those with some ids.
SELECT id, key FROM worker.quarantine
 WHERE run_id = :run_id AND step = :step AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY (:ids))
 ORDER BY id
