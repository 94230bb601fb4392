-- List the last due time of each cron line that was fired or skipped.
SELECT job, line, due_at FROM worker.cron_firing
