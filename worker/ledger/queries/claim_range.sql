-- Claim the next free range for a hand; its own unfinished range first. Returns no row if no range is free, if another
-- process owns the hand's run, or if the walk has ended.
-- The lock on the hand's run makes a takeover of that run wait, so that it finds this claim and releases the range.
WITH hand AS (
    SELECT id FROM worker.run WHERE id = :hand AND fence = :hand_fence AND finished_at IS NULL FOR SHARE
), walk AS (
    SELECT run.id
      FROM worker.run
      JOIN worker.step ON step.run_id = run.id AND step.name = :step
     WHERE run.id = :run_id AND run.fence = :fence AND run.finished_at IS NULL AND run.state <> 'paused'
       AND NOT step.done
), chosen AS (
    SELECT step_range.number
      FROM worker.step_range, hand, walk
     WHERE step_range.run_id = :run_id AND step_range.step = :step AND NOT step_range.done
       AND step_range.error IS NULL
       AND (step_range.owner IS NULL
            OR (step_range.owner = hand.id AND step_range.owner_fence = :hand_fence))
     ORDER BY step_range.owner IS NULL, step_range.number
     LIMIT 1
       FOR UPDATE OF step_range SKIP LOCKED
)
UPDATE worker.step_range
   SET owner = :hand, owner_fence = :hand_fence, fence = step_range.fence + 1, batches_before = step_range.batches,
       started_at = coalesce(step_range.started_at, pg_catalog.clock_timestamp()),
       updated_at = pg_catalog.clock_timestamp()
  FROM chosen
 WHERE step_range.run_id = :run_id AND step_range.step = :step AND step_range.number = chosen.number
RETURNING step_range.number, step_range.lower, step_range.upper, step_range.cursor, step_range.fence,
          step_range.rows, step_range.batches, step_range.done, step_range.pace,
          step_range.condition
