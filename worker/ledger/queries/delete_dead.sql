-- Delete dead runs, with their steps and their quarantined rows.
DELETE FROM worker.run WHERE id = ANY(CAST(:ids AS text[])) AND state = 'dead'
