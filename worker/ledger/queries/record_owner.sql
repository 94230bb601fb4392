-- Write down what this try is: its number, and the connection that it works on, where that has a backend of its own.
UPDATE worker.run
   SET state = 'running',
       attempt = :attempt,
       batches_before = :batches,
       takeovers = :takeovers,
       backend_pid = :backend_pid,
       backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = :backend_pid)
 WHERE id = :id AND fence = :fence
