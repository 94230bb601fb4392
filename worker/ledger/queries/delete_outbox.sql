-- Delete rows of the outbox that Redis has acknowledged.
DELETE FROM worker.outbox WHERE id = ANY(:ids)
