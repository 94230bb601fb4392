-- Begin a step again from its first row (a stream that cannot resume).
UPDATE worker.step
   SET cursor = NULL, rows = 0, batches = 0, done = false, updated_at = clock_timestamp()
 WHERE run_id = :run_id AND name = :name AND fence = :fence
