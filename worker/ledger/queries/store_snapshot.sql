-- Store the id of the snapshot that the hands of a stream share, with the pace of the step.
UPDATE worker.step
   SET pace = coalesce(pace, '{}') || pg_catalog.jsonb_build_object('snapshot', CAST(:snapshot AS text))
 WHERE run_id = :run_id AND name = :step AND fence = :fence
