-- Count all rows in quarantine, up to a number.
SELECT pg_catalog.count(*) FROM (SELECT FROM worker.quarantine LIMIT :most) AS held
