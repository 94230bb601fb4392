-- Store the part of the walks that an operator has selected for a run. It must not change once the run is enqueued.
INSERT INTO worker.selection (run_id, subset, first)
VALUES (:run_id, :subset, CAST(:first AS jsonb))
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id
