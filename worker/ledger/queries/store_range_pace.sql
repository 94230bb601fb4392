-- Store the pace of a range after a batch has failed, in a transaction of its own.
UPDATE worker.step_range
   SET pace = CAST(:pace AS jsonb)
 WHERE run_id = :run_id AND step = :step AND number = :number AND fence = :fence
