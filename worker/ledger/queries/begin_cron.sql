-- A line that nobody has seen before begins now: the first worker that says so decides, for all others, too.
INSERT INTO worker.cron_firing (job, line, due_at)
VALUES (:job, :line, :moment)
ON CONFLICT (job, line) DO NOTHING
