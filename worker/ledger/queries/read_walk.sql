-- Read the state of a walk over ranges, for one of its hands.
-- $1 run, $2 its fence, $3 step, $4 hand, $5 fence of the hand
SELECT coalesce((SELECT fence = $5::bigint FROM worker.run WHERE id = $4::text), false) AS is_owned,
       coalesce(run.finished_at IS NULL AND run.state <> 'paused' AND NOT step.done, false) AS is_open,
       coalesce(run.fence = $2::bigint, false) AS is_current,
       ranges.ranges, ranges.done, ranges.failed, ranges.hands, ranges.rows, ranges.rows_of_done,
       ranges.batches,
       coalesce(
           ranges.error,
           (SELECT pg_catalog.format('helper %s: %s', id, error)
              FROM worker.run AS helper
             WHERE parent = $1::text AND parent_fence = $2::bigint AND state = 'dead' LIMIT 1)
       ) AS error
  FROM (SELECT pg_catalog.count(*) AS ranges,
               pg_catalog.count(*) FILTER (WHERE done) AS done,
               pg_catalog.count(*) FILTER (WHERE error IS NOT NULL) AS failed,
               -- This hand, and those that have a range, or had one a moment ago and are about to claim the next.
               1 + pg_catalog.count(DISTINCT owner) FILTER (
                   WHERE owner <> $4::text AND error IS NULL
                     AND (NOT done OR updated_at > pg_catalog.clock_timestamp() - interval '1 second')) AS hands,
               coalesce(pg_catalog.sum(rows), 0)::bigint AS rows,
               coalesce(pg_catalog.sum(rows) FILTER (WHERE done), 0)::bigint AS rows_of_done,
               coalesce(pg_catalog.sum(batches), 0)::bigint AS batches,
               pg_catalog.min(pg_catalog.format('helper %s, range %s%s (behind %s, up to %s): %s', owner, number,
                                                ' of ' || partition, coalesce(lower::text, 'the beginning'), upper,
                                                error))
                   FILTER (WHERE error IS NOT NULL) AS error
          FROM worker.step_range
         WHERE run_id = $1::text AND step = $3::text) AS ranges
  LEFT JOIN worker.run ON run.id = $1::text
  LEFT JOIN worker.step ON step.run_id = $1::text AND step.name = $3::text
