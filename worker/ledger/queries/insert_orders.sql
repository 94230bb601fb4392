-- Add orders of operators. Several workers copy the same ones.
INSERT INTO worker.operator_order (entry_id, at, order_name, ordered_by, targets, details)
SELECT one.entry_id, one.at, one.order_name, one.ordered_by, one.targets::jsonb, one.details::jsonb
  FROM ROWS FROM (pg_catalog.unnest(CAST(:entry_id AS text[])), pg_catalog.unnest(CAST(:at AS timestamptz[])),
                  pg_catalog.unnest(CAST(:order_name AS text[])), pg_catalog.unnest(CAST(:ordered_by AS text[])),
                  pg_catalog.unnest(CAST(:targets AS text[])), pg_catalog.unnest(CAST(:details AS text[])))
       AS one (entry_id, at, order_name, ordered_by, targets, details)
 ORDER BY one.at
ON CONFLICT (entry_id) DO NOTHING
