-- Put a row into quarantine, in the transaction that moves the cursor past it.
-- $1 run, $2 step, $3 key, $4 error, $5 traceback, $6 row
INSERT INTO worker.quarantine (run_id, step, key, error, traceback, row)
VALUES ($1::text, $2::text, $3::text::jsonb, $4::text, $5::text, $6::text::jsonb)
