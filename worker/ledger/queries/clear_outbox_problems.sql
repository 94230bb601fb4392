-- Clear the problems of rows of the outbox: of some, or of all. The next relay tries them again.
UPDATE worker.outbox SET problem = NULL
 WHERE problem IS NOT NULL AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(CAST(:ids AS bigint[])))
RETURNING id
