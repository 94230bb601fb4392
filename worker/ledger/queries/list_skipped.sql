-- $1 run, $2 step, $3 how many
SELECT id, key::text AS key FROM worker.skipped WHERE run_id = $1::text AND step = $2::text ORDER BY id LIMIT $3::int
