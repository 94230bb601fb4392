-- Record what a verification has found: a run that ended becomes complete or incomplete.
UPDATE worker.run
   SET state = CASE WHEN CAST(:error AS text) IS NULL THEN 'succeeded' ELSE 'incomplete' END, error = :error,
       updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id AND state IN ('succeeded', 'incomplete')
RETURNING job, result
