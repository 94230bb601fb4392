-- Remember that a data migration is done. The pruner deletes its run, but never this row.
INSERT INTO worker.data_migration (name, run_id, result)
VALUES (:job, :id, CAST(:result AS jsonb))
ON CONFLICT (name) DO NOTHING
