-- Count the quarantined rows of a step, in the transaction that holds the lock of lock_quarantine.sql.
-- $1 run, $2 step
SELECT pg_catalog.count(*) FROM worker.quarantine WHERE run_id = $1::text AND step = $2::text
