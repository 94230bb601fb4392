-- What goes back to the queue from now on.
UPDATE worker.run SET payload = :payload WHERE id = :id
