-- Let the hands of a walk quarantine rows one after the other, so that together they keep to the limit.
-- $1 run, $2 step
SELECT FROM worker.step WHERE run_id = $1::text AND name = $2::text FOR UPDATE
