-- Take the ranges of a step that are not done from their owners. A checkpoint that is in flight is waited for.
UPDATE worker.step_range
   SET owner = NULL, owner_fence = NULL, fence = fence + 1
 WHERE run_id = :run_id AND step = :step AND NOT done
   AND EXISTS (SELECT FROM worker.step WHERE run_id = :run_id AND name = :step AND fence = :fence)
