-- Read a range again, for an owner that does not know whether its last COMMIT took effect.
-- Returns no row if another hand owns the range.
SELECT cursor, rows, batches, done, pace
  FROM worker.step_range
 WHERE run_id = :run_id AND step = :step AND number = :number AND fence = :fence
