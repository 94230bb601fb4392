-- Put the new fence on every step, and read where each one stands.
-- A checkpoint of the former owner that is in flight holds its row: this waits for its end and reads what it
-- committed; one that comes later finds another fence and matches nothing.
UPDATE worker.step
   SET fence = :fence
 WHERE run_id = :id
RETURNING name, position, kind, statement, key, cursor, upper_bound, rows, batches, total, done
