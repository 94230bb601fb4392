-- Find the part of the walks that an operator has selected for a run.
SELECT subset, first FROM worker.selection WHERE run_id = :run_id
