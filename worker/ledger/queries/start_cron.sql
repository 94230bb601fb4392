-- Record the moment from which a new cron line counts. The first worker to see the line decides for all.
INSERT INTO worker.cron_firing (job, line, due_at)
VALUES (:job, :line, :moment)
ON CONFLICT (job, line) DO NOTHING
