-- Claim a due time of a cron line. Returns no row if it was fired or skipped before. The due time only moves forward.
-- The caller holds the transaction open while it enqueues the job: a second worker waits here, and then finds the due
-- time claimed.
INSERT INTO worker.cron_firing AS known (job, line, due_at)
VALUES (:job, :line, :due_at)
ON CONFLICT (job, line) DO UPDATE SET due_at = excluded.due_at WHERE known.due_at < excluded.due_at
RETURNING due_at
