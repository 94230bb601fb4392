-- Lock the next rows of the outbox, and return as many of them as fit into a number of bytes, but at least one. Rows
-- that another relay has locked are passed over, and, with :queues, those that name another queue. A payload that is too long is not read: only its length is returned.
-- A due time that no clock of a worker can show, such as infinity, is returned as the year 10,000.
WITH locked AS MATERIALIZED (
    SELECT id, run_id, queue, payload, due_at, priority, options, mark
    FROM worker.outbox
    WHERE id > :after AND problem IS NULL
      AND (CAST(:queues AS text[]) IS NULL OR queue IS NULL OR queue = ANY(CAST(:queues AS text[])))
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), measured AS (
    SELECT *, pg_catalog.octet_length(payload) AS bytes,
           pg_catalog.sum(pg_catalog.octet_length(payload)) OVER (ORDER BY id) AS bytes_so_far
    FROM locked
)
SELECT id, run_id, queue, CASE WHEN bytes <= :max_bytes THEN payload END AS payload, bytes,
       CASE WHEN due_at IS NOT NULL
            THEN CAST(ceil(EXTRACT(epoch FROM LEAST(GREATEST(due_at, timestamptz '1970-01-01 00:00+00'),
                                                    timestamptz '10000-01-01 00:00+00')) * 1000) AS bigint)
       END AS due_ms, priority, CAST(options AS text) AS options,
       id || ':' || mark AS mark
FROM measured
WHERE bytes_so_far - bytes < :most_bytes
ORDER BY id
