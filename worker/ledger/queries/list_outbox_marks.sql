-- Return the marks of those of some rows that the outbox still has.
SELECT id || ':' || mark AS mark FROM worker.outbox WHERE id = ANY(:ids)
