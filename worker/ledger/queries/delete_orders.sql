-- Delete the records of orders that are older than a time, from the oldest on, some at a time. Their ids grow with
-- time, so that the primary key serves the look at the oldest.
DELETE FROM worker.operator_order AS recorded
 USING (SELECT id FROM worker.operator_order ORDER BY id LIMIT :limit) AS oldest
 WHERE recorded.id = oldest.id
   AND recorded.at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => :keep_seconds)
