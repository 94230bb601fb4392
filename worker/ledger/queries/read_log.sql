-- Return the last lines of the log of a run.
SELECT lines FROM worker.run_log WHERE run_id = :run_id
