-- Continue a step with another statement, under the fence.
UPDATE worker.step
   SET statement = :statement, code_version = :code_version, updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = :run_id AND name = :name AND fence = :fence
