-- Find the sessions of workers that another session waits for, and that wait for their client: they are frozen.
-- A client that freezes between two messages of one command leaves a session that is active. No timeout ends it.
SELECT pid, backend_start
  FROM pg_catalog.pg_stat_activity
 WHERE pid = ANY(pg_catalog.pg_blocking_pids(:pid))
   AND (state = 'idle in transaction' OR (state = 'active' AND wait_event = 'ClientRead'))
   AND pg_catalog.split_part(application_name, ':', 1)
       = pg_catalog.split_part(pg_catalog.current_setting('application_name'), ':', 1)
   AND pg_catalog.clock_timestamp() - state_change > pg_catalog.make_interval(secs => :seconds)
