-- Record the end of a run. The fence keeps a replaced worker from ending a run that another one owns. A repetition, by
-- an owner that does not know whether its COMMIT took effect, changes nothing.
WITH released AS (
    -- Its ranges are free for other hands; those of a helper that has failed for good wait for `worker retry`.
    UPDATE worker.step_range
       SET owner = CASE WHEN :state = 'dead' AND run_id <> :id THEN owner END,
           error = CASE WHEN :state = 'dead' AND run_id <> :id THEN coalesce(CAST(:error AS text), '') END,
           owner_fence = NULL, fence = fence + 1, updated_at = pg_catalog.clock_timestamp()
     WHERE owner = :id AND owner_fence = :fence AND NOT done
)
UPDATE worker.run
   SET state = :state, result = CAST(:result AS jsonb), error = :error, traceback = :traceback,
       backend_pid = NULL, backend_start = NULL,
       finished_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id AND fence = :fence AND (finished_at IS NULL OR state = :state)
