-- Note that a due time was fired or skipped; it only ever moves forward.
INSERT INTO worker.cron_firing AS known (job, line, due_at)
VALUES (:job, :line, :due_at)
ON CONFLICT (job, line) DO UPDATE SET due_at = excluded.due_at WHERE known.due_at < excluded.due_at
