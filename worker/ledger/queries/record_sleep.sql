-- Record the end of a sleep, by the server's clock, before the run is given back. Returns the seconds until then; no row if
-- another worker owns the run.
-- $1 run, $2 fence, $3 position, $4 name, $5 end (NULL for a number of seconds), $6 seconds, $7 version
WITH owned AS (
    UPDATE worker.run SET steps = steps + 1, updated_at = pg_catalog.clock_timestamp()
     WHERE id = $1::text AND fence = $2::bigint
    RETURNING id, coalesce($5::timestamptz,
                           pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $6::float)) AS until
)
INSERT INTO worker.step
       (run_id, name, position, kind, statement, key, fence, batches, done, result, code_version, started_at, updated_at)
SELECT id, $4::text, $3::int, 'sleep', '', '[]'::jsonb, $2::bigint, 1, until <= pg_catalog.clock_timestamp(),
       pg_catalog.to_json(until)::text, $7::text, pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp()
  FROM owned
RETURNING EXTRACT(epoch FROM (result::json #>> '{}')::timestamptz - pg_catalog.clock_timestamp())::float AS seconds
