-- Write down what this try is: its number, and the connection that it works on.
UPDATE worker.run
   SET state = 'running',
       attempt = :attempt,
       batches_before = :batches,
       takeovers = :takeovers,
       backend_pid = activity.pid,
       backend_start = activity.backend_start
  FROM pg_stat_activity AS activity
 WHERE run.id = :id AND run.fence = :fence AND activity.pid = :backend_pid
