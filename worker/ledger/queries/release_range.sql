-- Take a range from an owner that has died. A checkpoint of it that is in flight is waited for; a later one finds
-- another fence.
UPDATE worker.step_range
   SET owner = NULL, owner_fence = NULL, fence = fence + 1, updated_at = pg_catalog.clock_timestamp()
 WHERE run_id = :run_id AND step = :step AND number = :number AND owner = :owner AND owner_fence = :owner_fence
   AND NOT done
RETURNING number
