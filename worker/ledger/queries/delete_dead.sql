-- Forget runs that have failed for good, with their steps and their rows in quarantine: somebody has seen to them.
DELETE FROM worker.run WHERE id = ANY(CAST(:ids AS text[])) AND state = 'dead'
