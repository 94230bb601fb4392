-- The foreign keys that lead to a table, directly or by way of other tables, whose rows a DELETE has to consider:
-- PostgreSQL itself handles ON DELETE SET NULL and SET DEFAULT. Those of partitions belong to their parents.
--
-- A row of a partition is also one of the partitioned table, and either may refer to others, or be referred to. So:
-- 1. the foreign keys to the table, to the partitioned tables above it, and to its partitions, are direct;
-- 2. what refers to a child is reached, and so is what refers to the partitioned tables above it, as if it referred to
--    the child itself;
-- 3. a partition of a child to which others refer is a child of its own, with the foreign keys of its table; and its
--    table comes behind those others in the order: a row without columns.
WITH RECURSIVE root (relation, is_partition) AS (
    SELECT pg_catalog.to_regclass(CAST(:table AS text))::oid, false
    UNION
    SELECT relid::oid, false
      FROM pg_catalog.pg_partition_ancestors(pg_catalog.to_regclass(CAST(:table AS text))) AS above (relid)
    UNION
    SELECT relid::oid, true
      FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(CAST(:table AS text))) AS below
     WHERE level > 0
), keys AS MATERIALIZED (
    SELECT conname, conrelid AS child, confrelid AS parent, conkey, confkey, confdeltype = 'c' AS cascades
      FROM pg_catalog.pg_constraint
     WHERE contype = 'f' AND conparentid = 0 AND confdeltype NOT IN ('n', 'd')
), above AS MATERIALIZED (
    SELECT relation, relid::oid AS ancestor
      FROM (SELECT child FROM keys UNION SELECT parent FROM keys) AS named (relation),
           LATERAL pg_catalog.pg_partition_ancestors(relation::regclass) AS ancestors (relid)
     WHERE relid <> relation
), reached (relation) AS (
    SELECT relation FROM root
    UNION
    SELECT found.relation
      FROM reached,
           LATERAL (
               SELECT child FROM keys WHERE parent = reached.relation
               UNION ALL
               SELECT child FROM keys
                WHERE parent IN (SELECT ancestor FROM above WHERE above.relation = reached.relation)
               UNION ALL
               SELECT parent FROM keys
                WHERE parent IN (SELECT above.relation FROM above WHERE ancestor = reached.relation)
           ) AS found (relation)
), child AS (
    SELECT relation FROM reached WHERE relation NOT IN (SELECT relation FROM root)
), edge AS (
    SELECT child, parent, child AS child_of, parent AS parent_of, conkey, confkey, cascades, conname
      FROM keys WHERE parent IN (SELECT relation FROM reached)
    UNION ALL
    SELECT keys.child, above.relation, keys.child, parent, conkey, confkey, cascades, conname
      FROM keys JOIN above ON ancestor = parent JOIN child ON child.relation = above.relation
    UNION ALL
    SELECT above.relation, parent, keys.child, parent, conkey, confkey, cascades, conname
      FROM keys JOIN above ON ancestor = keys.child JOIN child ON child.relation = above.relation
     WHERE parent IN (SELECT relation FROM reached)
    UNION ALL
    SELECT keys.child, ancestor, keys.child, ancestor, NULL, NULL, cascades, conname
      FROM keys JOIN above ON above.relation = parent JOIN child ON child.relation = ancestor
)
SELECT DISTINCT
       child_space.nspname::text AS child_schema,
       child.relname::text AS child_table,
       parent_space.nspname::text AS parent_schema,
       parent.relname::text AS parent_table,
       (SELECT pg_catalog.array_agg(attname::text ORDER BY place)
          FROM pg_catalog.unnest(conkey) WITH ORDINALITY AS key (number, place)
          JOIN pg_catalog.pg_attribute ON attrelid = child_of AND attnum = number) AS child_columns,
       (SELECT pg_catalog.array_agg(attname::text ORDER BY place)
          FROM pg_catalog.unnest(confkey) WITH ORDINALITY AS key (number, place)
          JOIN pg_catalog.pg_attribute ON attrelid = parent_of AND attnum = number) AS parent_columns,
       cascades,
       root.relation IS NOT NULL AS is_direct,
       coalesce(root.is_partition, false) AS to_partition,
       conname
  FROM edge
  JOIN pg_catalog.pg_class AS child ON child.oid = edge.child
  JOIN pg_catalog.pg_namespace AS child_space ON child_space.oid = child.relnamespace
  JOIN pg_catalog.pg_class AS parent ON parent.oid = edge.parent
  JOIN pg_catalog.pg_namespace AS parent_space ON parent_space.oid = parent.relnamespace
  LEFT JOIN root ON root.relation = edge.parent
 ORDER BY child_schema, child_table, conname
