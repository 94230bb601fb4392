-- Insert the ranges of a step. The lock on the step makes a takeover of the run wait.
WITH owned AS (
    SELECT run_id, name FROM worker.step WHERE run_id = :run_id AND name = :step AND fence = :fence FOR UPDATE
)
INSERT INTO worker.step_range (run_id, step, number, lower, upper, partition, condition)
SELECT owned.run_id, owned.name, given.place,
       CASE WHEN pg_catalog.jsonb_typeof(given.bounds -> 0) = 'null' THEN NULL ELSE given.bounds -> 0 END,
       given.bounds -> 1, given.bounds ->> 2, given.bounds ->> 3
  FROM owned,
       pg_catalog.jsonb_array_elements(CAST(:bounds AS jsonb)) WITH ORDINALITY AS given (bounds, place)
