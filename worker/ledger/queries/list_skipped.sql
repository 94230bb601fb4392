-- List the keys of skipped rows, in the order in which they were skipped.
-- $1 run, $2 step, $3 limit
SELECT id, key::text AS key FROM worker.skipped WHERE run_id = $1::text AND step = $2::text ORDER BY id LIMIT $3::int
