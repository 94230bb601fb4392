-- Count the quarantined rows of a step.
SELECT pg_catalog.count(*) FROM worker.quarantine WHERE run_id = :run_id AND step = :step
