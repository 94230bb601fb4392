-- A row that was set aside was done again, in the transaction of that batch.
-- $1 run, $2 step, $3 key
DELETE FROM worker.quarantine WHERE run_id = $1::text AND step = $2::text AND key = $3::text::jsonb
