-- Delete rows of the outbox that cannot be relayed: some, or all.
DELETE FROM worker.outbox
 WHERE problem IS NOT NULL AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(CAST(:ids AS bigint[])))
RETURNING id
