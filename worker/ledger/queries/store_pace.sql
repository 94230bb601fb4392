-- Store the pace of a step after a batch has failed, in a transaction of its own.
UPDATE worker.step SET pace = CAST(:pace AS jsonb) WHERE run_id = :run_id AND name = :step AND fence = :fence
