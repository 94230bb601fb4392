-- Delete quarantined rows that have been processed, in the transaction of their batch, by their keys.
-- $1 run, $2 step, $3 keys, each as JSON
DELETE FROM worker.quarantine WHERE run_id = $1::text AND step = $2::text AND key = ANY ($3::text[]::jsonb[])
