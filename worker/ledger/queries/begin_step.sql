-- Insert a step whose function is about to run, or note that it runs again. The lock on the run makes a takeover wait, so
-- that it sees this row and sets its fence too. Returns no row if another worker owns the run.
-- $1 run, $2 fence, $3 position, $4 name, $5 function, $6 version, $7 1 for a new step
WITH owned AS (
    UPDATE worker.run SET steps = steps + $7::int, updated_at = pg_catalog.clock_timestamp()
     WHERE id = $1::text AND fence = $2::bigint
    RETURNING id
)
INSERT INTO worker.step
       (run_id, name, position, kind, statement, key, fence, code_version, started_at, updated_at)
SELECT id, $4::text, $3::int, 'step', $5::text, '[]'::jsonb, $2::bigint, $6::text,
       pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp()
  FROM owned
ON CONFLICT (run_id, name) DO UPDATE
   SET statement = excluded.statement, code_version = excluded.code_version,
       started_at = excluded.started_at, updated_at = excluded.updated_at
RETURNING name
