-- Rows that were skipped and have been seen to, in the transaction of that.
-- $1 ids
DELETE FROM worker.skipped WHERE id = ANY($1::bigint[])
