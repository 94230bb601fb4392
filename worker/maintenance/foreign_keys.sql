-- The foreign keys that lead to a table, directly or by way of other tables, whose rows a DELETE has to consider:
-- PostgreSQL itself handles ON DELETE SET NULL and SET DEFAULT. Those of partitions belong to their parents.
WITH RECURSIVE reached (relation) AS (
    SELECT pg_catalog.to_regclass(CAST(:table AS text))::oid
    UNION
    SELECT conrelid
      FROM pg_catalog.pg_constraint
      JOIN reached ON confrelid = relation
     WHERE contype = 'f' AND conparentid = 0 AND confdeltype NOT IN ('n', 'd')
)
SELECT child_space.nspname::text AS child_schema,
       child.relname::text AS child_table,
       parent_space.nspname::text AS parent_schema,
       parent.relname::text AS parent_table,
       (SELECT pg_catalog.array_agg(attname::text ORDER BY place)
          FROM pg_catalog.unnest(conkey) WITH ORDINALITY AS key (number, place)
          JOIN pg_catalog.pg_attribute ON attrelid = conrelid AND attnum = number) AS child_columns,
       (SELECT pg_catalog.array_agg(attname::text ORDER BY place)
          FROM pg_catalog.unnest(confkey) WITH ORDINALITY AS key (number, place)
          JOIN pg_catalog.pg_attribute ON attrelid = confrelid AND attnum = number) AS parent_columns,
       confdeltype = 'c' AS cascades,
       confrelid = pg_catalog.to_regclass(CAST(:table AS text)) AS is_direct
  FROM pg_catalog.pg_constraint
  JOIN pg_catalog.pg_class AS child ON child.oid = conrelid
  JOIN pg_catalog.pg_namespace AS child_space ON child_space.oid = child.relnamespace
  JOIN pg_catalog.pg_class AS parent ON parent.oid = confrelid
  JOIN pg_catalog.pg_namespace AS parent_space ON parent_space.oid = parent.relnamespace
 WHERE contype = 'f' AND conparentid = 0 AND confdeltype NOT IN ('n', 'd')
   AND confrelid IN (SELECT relation FROM reached)
 ORDER BY child_schema, child_table, conname
