-- How many rows of a step were set aside.
SELECT count(*) FROM worker.quarantine WHERE run_id = :run_id AND step = :step
