-- Release the unfinished ranges of a hand whose run is claimed again. It waits for a checkpoint of the former owner
-- that is in flight. Returns whether the former owner has committed a batch in each.
UPDATE worker.step_range
   SET owner = NULL, owner_fence = NULL, fence = fence + 1, updated_at = pg_catalog.clock_timestamp()
 WHERE owner = :id AND NOT done
RETURNING batches > batches_before AS has_progressed
