-- List the samples of a run, in their order.
SELECT step, at, attempt, rows, batches, seconds FROM worker.sample WHERE run_id = :run_id ORDER BY id
