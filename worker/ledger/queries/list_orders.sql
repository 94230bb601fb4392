-- List orders of operators, newest first.
SELECT id AS number, entry_id AS id, at, order_name AS "order", ordered_by, targets, details
  FROM worker.operator_order
 WHERE CAST(:before AS bigint) IS NULL OR id < :before
 ORDER BY id DESC
 LIMIT :limit
