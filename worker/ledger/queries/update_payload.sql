-- Replace the payload that goes back to the queue.
UPDATE worker.run SET payload = :payload WHERE id = :id
