-- ... or from its first row.
DELETE FROM worker.step WHERE run_id = :id
