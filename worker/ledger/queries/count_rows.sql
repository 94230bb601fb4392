-- Count the quarantined rows of a run.
SELECT pg_catalog.count(*) FROM worker.quarantine WHERE run_id = :run_id
