-- The checkpoint, in the batch's own transaction.
-- Fence and cursor are in one row. Either a takeover's UPDATE of the fence waits for our commit and then reads the new
-- cursor; or our UPDATE waits for the takeover, finds another fence, matches no row, and we roll back. With the fence
-- in another row, a takeover could commit between our read of it and our commit, and read the old cursor.
-- $1 cursor, $2 rows, $3 done, $4 run, $5 step, $6 fence, $7 batches, $8 pace
UPDATE worker.step
   SET cursor = coalesce($1::text::jsonb, cursor), rows = rows + $2::bigint, batches = batches + $7::bigint,
       done = $3::boolean, pace = coalesce($8::text::jsonb, pace), updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = $4::text AND name = $5::text AND fence = $6::bigint
