-- Delete the steps of a run and their samples, so that it starts from its first row.
WITH counted AS (
    UPDATE worker.run SET steps = 0 WHERE id = :id
),
forgotten AS (
    DELETE FROM worker.sample WHERE run_id = :id
)
DELETE FROM worker.step WHERE run_id = :id
