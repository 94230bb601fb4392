-- Delete the steps of a run, so that it starts from its first row.
DELETE FROM worker.step WHERE run_id = :id
