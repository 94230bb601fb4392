-- The checkpoint of a range, in the batch's own transaction. Fence and cursor are in one row: see checkpoint.sql.
-- $1 cursor, $2 rows, $3 done, $4 run, $5 step, $6 fence, $7 batches, $8 pace, $9 number
UPDATE worker.step_range
   SET cursor = coalesce($1::text::jsonb, cursor), rows = rows + $2::bigint, batches = batches + $7::bigint,
       done = $3::boolean, pace = coalesce($8::text::jsonb, pace), updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = $4::text AND step = $5::text AND number = $9::int AND fence = $6::bigint
