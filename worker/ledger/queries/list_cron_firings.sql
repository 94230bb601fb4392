SELECT job, line, due_at FROM worker.cron_firing
