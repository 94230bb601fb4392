-- List the sessions of workers that wait for their client in the middle of a command, with their progress: the
-- beginning of the command's last statement, and the bytes that COPY has read.
SELECT session.pid, session.backend_start, session.application_name, session.query_start,
       coalesce(copied.bytes_processed, 0) AS bytes
  FROM pg_catalog.pg_stat_activity AS session
  LEFT JOIN pg_catalog.pg_stat_progress_copy AS copied ON copied.pid = session.pid
 WHERE session.datname = pg_catalog.current_database() AND session.state = 'active'
   AND session.wait_event = 'ClientRead'
   AND pg_catalog.split_part(session.application_name, ':', 1)
       = pg_catalog.split_part(pg_catalog.current_setting('application_name'), ':', 1)
