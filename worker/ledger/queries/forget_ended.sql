-- Forget runs that ended before a time, the oldest first, some at a time, with their steps; not one that has rows in
-- quarantine. One that somebody puts back at this moment is his: locked, it is passed over, and put back, it has no end.
-- The walk goes on behind the last one, so that those that stay are not looked at again and again.
WITH chosen AS MATERIALIZED (
    SELECT id
      FROM worker.run AS ended
     WHERE finished_at < clock_timestamp() - make_interval(secs => :keep_seconds)
       AND (finished_at, id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS text))
       AND NOT EXISTS (SELECT FROM worker.quarantine WHERE run_id = ended.id)
     ORDER BY finished_at, id
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
)
DELETE FROM worker.run USING chosen WHERE run.id = chosen.id
RETURNING run.id, run.state, run.finished_at
