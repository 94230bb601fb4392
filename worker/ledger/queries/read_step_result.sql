-- Read the result of a recorded step. Returns no row if the run has no such step.
-- $1 run, $2 name
SELECT result FROM worker.step WHERE run_id = $1::text AND name = $2::text AND kind = 'step' AND done
