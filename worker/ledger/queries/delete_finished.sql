-- Delete runs that finished before a time, with their steps, oldest first, one page at a time. Runs with quarantined
-- rows stay. A run that an operator retries at this moment is locked, and skipped; once retried it is unfinished.
-- The walk continues after the last run of the page before, so that runs that stay are not read again and again.
WITH chosen AS MATERIALIZED (
    SELECT id
      FROM worker.run AS finished
     WHERE finished_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => :keep_seconds)
       AND (finished_at, id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS text))
       AND NOT EXISTS (SELECT FROM worker.quarantine WHERE run_id = finished.id)
     ORDER BY finished_at, id
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
),
unselected AS (
    DELETE FROM worker.selection USING chosen WHERE run_id = chosen.id
)
DELETE FROM worker.run USING chosen WHERE run.id = chosen.id
RETURNING run.id, run.state, run.finished_at
