-- Record why a row of the outbox cannot be relayed. It waits until an operator clears the problem or deletes the row.
UPDATE worker.outbox SET problem = :problem WHERE id = :id
