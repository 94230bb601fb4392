-- Return whether a run has helper runs that have not ended.
SELECT EXISTS (SELECT FROM worker.run WHERE parent = :run_id AND finished_at IS NULL)
