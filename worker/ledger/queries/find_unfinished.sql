-- Find those of some runs that have not ended.
SELECT id FROM worker.run WHERE id = ANY (cast(:ids AS text[])) AND finished_at IS NULL
