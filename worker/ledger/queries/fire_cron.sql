-- Take a due time for this worker; no row comes back when it was fired or skipped before. It only ever moves forward.
-- Held in a transaction around the enqueueing, so that a second worker waits here and then finds it taken.
INSERT INTO worker.cron_firing AS known (job, line, due_at)
VALUES (:job, :line, :due_at)
ON CONFLICT (job, line) DO UPDATE SET due_at = excluded.due_at WHERE known.due_at < excluded.due_at
RETURNING due_at
