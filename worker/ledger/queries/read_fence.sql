-- Read the fence of a run.
-- $1 run
SELECT fence FROM worker.run WHERE id = $1::text
