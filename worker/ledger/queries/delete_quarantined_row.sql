-- Delete a quarantined row that has been processed, in the transaction of that batch.
-- $1 run, $2 step, $3 key
DELETE FROM worker.quarantine WHERE run_id = $1::text AND step = $2::text AND key = $3::text::jsonb
