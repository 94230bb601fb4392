-- Keys of the rows of a step that were set aside.
SELECT key FROM worker.quarantine WHERE run_id = :run_id AND step = :step ORDER BY id
