-- Record the number of this attempt, and its backend. A backend behind PgBouncer is not the run's own.
UPDATE worker.run
   SET state = 'running',
       attempt = :attempt,
       batches_before = :batches,
       takeovers = :takeovers,
       backend_pid = backend.pid,
       backend_start = backend.backend_start
  FROM (SELECT) AS owner
  LEFT JOIN pg_catalog.pg_stat_activity AS backend ON backend.pid = pg_catalog.pg_backend_pid() AND NOT :is_pooled
 WHERE run.id = :id AND run.fence = :fence
