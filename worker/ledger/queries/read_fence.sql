-- $1 run
SELECT fence FROM worker.run WHERE id = $1::text
