-- Return how many rows of the outbox wait, the age of the oldest one, and how many cannot be relayed, with the problem of
-- the first of them. Looks at no more than :most rows.
SELECT count(*) FILTER (WHERE problem IS NULL) AS waiting,
       CAST(COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE problem IS NULL)), 0)
            AS double precision) AS oldest_seconds,
       count(problem) AS refused,
       (array_agg(problem ORDER BY id) FILTER (WHERE problem IS NOT NULL))[1] AS problem
FROM (
    SELECT id, LEAST(GREATEST(created_at, timestamptz '1970-01-01 00:00+00'), clock_timestamp()) AS created_at, problem
    FROM worker.outbox ORDER BY id LIMIT :most
) AS looked_at
