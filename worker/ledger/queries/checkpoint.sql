-- Move the cursor, in the batch's own transaction.
-- The step's row holds both fence and cursor. Therefore a takeover's UPDATE of the fence either waits for our commit
-- and reads the new cursor, or commits first, and then this statement matches no row. If the fence were in another
-- row, a takeover could commit between our check of it and our commit, and read the old cursor.
-- The statement is sent together with COMMIT, in one message. If no row has our fence, the division by zero fails the
-- message before it reaches COMMIT.
-- $1 cursor, $2 rows, $3 done, $4 run, $5 step, $6 fence, $7 batches
WITH moved AS (
    UPDATE worker.step
       SET cursor = coalesce($1::text::jsonb, cursor), rows = rows + $2::bigint, batches = batches + $7::bigint,
           done = $3::boolean, updated_at = pg_catalog.clock_timestamp()
     WHERE run_id = $4::text AND name = $5::text AND fence = $6::bigint
    RETURNING 1
)
SELECT 1 / pg_catalog.count(*) FROM moved
