-- Read how many seconds a sleep still lasts, by the server's clock, and end it if it is over. Returns no row if another
-- worker owns the run.
-- $1 run, $2 fence, $3 name
UPDATE worker.step
   SET done = done OR (result::json #>> '{}')::timestamptz <= pg_catalog.clock_timestamp(),
       updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = $1::text AND fence = $2::bigint AND name = $3::text
RETURNING EXTRACT(epoch FROM (result::json #>> '{}')::timestamptz - pg_catalog.clock_timestamp())::float AS seconds
