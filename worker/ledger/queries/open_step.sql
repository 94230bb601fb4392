-- Insert a step. The lock on the run makes a takeover wait, so that it sees this row and sets its fence too.
-- Returns no row if another worker owns the run.
WITH owned AS (
    SELECT id FROM worker.run WHERE id = :run_id AND fence = :fence FOR NO KEY UPDATE
)
INSERT INTO worker.step (run_id, name, position, kind, statement, key, fence, upper_bound, total, done)
SELECT id, :name, :position, :kind, :statement, CAST(:key AS jsonb), :fence,
       CAST(:upper_bound AS jsonb), :total, :done
  FROM owned
RETURNING name
