-- Insert a step, and count it in the run, so that a later claim notices if a step is gone. The lock on the run makes a
-- takeover wait, so that it sees this row and sets its fence too. Returns no row if another worker owns the run.
WITH owned AS (
    UPDATE worker.run SET steps = steps + 1 WHERE id = :run_id AND fence = :fence RETURNING id
)
INSERT INTO worker.step
       (run_id, name, position, kind, statement, key, fence, upper_bound, total, done, code_version)
SELECT id, :name, :position, :kind, :statement, CAST(:key AS jsonb), :fence,
       CAST(:upper_bound AS jsonb), :total, :done, :code_version
  FROM owned
RETURNING name
