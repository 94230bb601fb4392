-- Set the new fence on every step of the run, and return the cursor and counts of each step.
-- A checkpoint of the former owner that is in flight holds a lock on its step: this statement waits for it and reads
-- the cursor that it commits. A later checkpoint finds another fence and matches no row.
UPDATE worker.step
   SET fence = :fence
 WHERE run_id = :id
RETURNING name, position, kind, statement, key, cursor, upper_bound, rows, batches, total, done, pace, code_version,
          (SELECT pg_catalog.count(*) FROM worker.step_range
            WHERE step_range.run_id = step.run_id AND step_range.step = step.name)::int AS ranges
