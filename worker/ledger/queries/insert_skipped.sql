-- Record rows that another session has locked, in the transaction that moves the cursor past them.
-- $1 run, $2 step, $3 keys
INSERT INTO worker.skipped (run_id, step, key) SELECT $1::text, $2::text, pg_catalog.unnest($3::text[])::jsonb
