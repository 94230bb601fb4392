-- Join each second sample of a step with the one behind it, so that their times are kept, once there are too many.
WITH numbered AS (
    SELECT id, seconds, pg_catalog.row_number() OVER (ORDER BY id) AS number, pg_catalog.count(*) OVER () AS total
      FROM worker.sample
     WHERE run_id = :run_id AND step = :step
),
odd AS (
    SELECT one.id, one.seconds, next.id AS next_id
      FROM numbered AS one JOIN numbered AS next ON next.number = one.number + 1
     WHERE one.number % 2 = 1 AND one.total > :most
),
joined AS (
    UPDATE worker.sample
       SET seconds = (SELECT pg_catalog.jsonb_object_agg(key, total)
                        FROM (SELECT key, pg_catalog.sum(value::float8) AS total
                                FROM (SELECT * FROM pg_catalog.jsonb_each_text(odd.seconds)
                                      UNION ALL SELECT * FROM pg_catalog.jsonb_each_text(sample.seconds)) AS parts
                               GROUP BY key) AS sums)
      FROM odd
     WHERE sample.id = odd.next_id
)
DELETE FROM worker.sample USING odd WHERE sample.id = odd.id
