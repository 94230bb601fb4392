-- Reset a step to its first row, e.g. a stream that cannot resume. The parts that it wrote are no longer committed, and
-- the rows that it quarantined are processed again.
WITH parts AS (
    DELETE FROM worker.part WHERE run_id = :run_id AND step = :name
), quarantined AS (
    DELETE FROM worker.quarantine AS row
     USING worker.step
     WHERE row.run_id = :run_id AND row.step = :name AND step.run_id = :run_id AND step.name = :name
       AND row.created_at >= step.started_at
)
UPDATE worker.step
   SET cursor = NULL, rows = 0, batches = 0, done = false, updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = :run_id AND name = :name AND fence = :fence
