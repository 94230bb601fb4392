-- Record the result of a step, in the transaction of its effects if they are in this database. Fence and result are in
-- one row: see checkpoint.sql. Matches no row if another worker owns the run.
-- $1 run, $2 fence, $3 name, $4 result
UPDATE worker.step
   SET done = true, batches = 1, result = $4::text, updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = $1::text AND name = $3::text AND fence = $2::bigint AND kind = 'step'
