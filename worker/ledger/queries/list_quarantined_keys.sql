-- List the keys of the quarantined rows of a step.
SELECT id, key FROM worker.quarantine WHERE run_id = :run_id AND step = :step ORDER BY id
