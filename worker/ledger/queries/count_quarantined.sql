-- Count the rows of a step that were quarantined since it began: an earlier run of the same id may have left others.
SELECT pg_catalog.count(row.id), step.total
  FROM worker.step
  LEFT JOIN worker.quarantine AS row
    ON row.run_id = step.run_id AND row.step = step.name AND row.created_at >= step.started_at
 WHERE step.run_id = :run_id AND step.name = :step
 GROUP BY step.total
