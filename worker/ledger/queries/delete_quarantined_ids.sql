-- Delete quarantined rows that have been processed, in the transaction of their batch.
-- $1 ids
DELETE FROM worker.quarantine WHERE id = ANY ($1::bigint[])
