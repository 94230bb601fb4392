-- Delete skipped rows that have been processed, in the transaction of that batch.
-- $1 ids
DELETE FROM worker.skipped WHERE id = ANY($1::bigint[])
