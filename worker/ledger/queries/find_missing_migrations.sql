-- List the data migrations of a list that are not done, with the state of their runs.
SELECT asked.name, run.state, run.error,
       (SELECT pg_catalog.sum(rows) FROM worker.step WHERE run_id = run.id)::bigint AS rows
  FROM pg_catalog.unnest(CAST(:names AS text[])) WITH ORDINALITY AS asked (name, place)
  LEFT JOIN worker.run ON run.id = asked.name
 WHERE NOT EXISTS (SELECT FROM worker.data_migration AS done WHERE done.name = asked.name)
 ORDER BY place
