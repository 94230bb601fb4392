-- Append lines to the logs of runs, and keep the last ones: at most a number, and at most a number of bytes. The lines of
-- each run are a JSON array of texts. A run that was deleted meanwhile is left out.
WITH given AS (
    SELECT run.id, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(one.lines::jsonb)) AS lines
      FROM ROWS FROM (pg_catalog.unnest(CAST(:ids AS text[])), pg_catalog.unnest(CAST(:texts AS text[])))
           AS one (id, lines)
      JOIN worker.run ON run.id = one.id
),
joined AS (
    SELECT given.id, COALESCE(old.lines, '{}') || given.lines AS lines
      FROM given LEFT JOIN worker.run_log AS old ON old.run_id = given.id
)
INSERT INTO worker.run_log (run_id, lines)
SELECT joined.id,
       ARRAY(SELECT sized.line
               FROM (SELECT line, place, pg_catalog.sum(pg_catalog.octet_length(line)) OVER (ORDER BY place DESC) AS size
                       FROM pg_catalog.unnest(joined.lines) WITH ORDINALITY AS each (line, place)) AS sized
              WHERE sized.size <= CAST(:most_bytes AS bigint)
                AND sized.place > pg_catalog.cardinality(joined.lines) - CAST(:most_lines AS integer)
              ORDER BY sized.place)
  FROM joined
 ORDER BY joined.id
ON CONFLICT (run_id) DO UPDATE SET lines = EXCLUDED.lines, updated_at = pg_catalog.clock_timestamp()
