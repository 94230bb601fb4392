-- Count the quarantined rows of a step, in the transaction that holds the lock of lock_quarantine.sql.
-- $1 run, $2 step
SELECT pg_catalog.count(row.id), step.total
  FROM worker.step
  LEFT JOIN worker.quarantine AS row
    ON row.run_id = step.run_id AND row.step = step.name AND row.created_at >= step.started_at
 WHERE step.run_id = $1::text AND step.name = $2::text
 GROUP BY step.total
