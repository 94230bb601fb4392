-- Why rows could no longer match a condition, or be kept, when their children are gone; all null if nothing of it is so.
-- A table is read if it is named, or inherits from a named table, or the other way round.
WITH RECURSIVE named AS MATERIALIZED (
    SELECT pg_catalog.to_regclass(name)::oid AS relation FROM pg_catalog.unnest(CAST(:tables AS text[])) AS each (name)
), root AS MATERIALIZED (
    SELECT pg_catalog.to_regclass(CAST(:target AS text))::oid AS relation
), child AS MATERIALIZED (
    SELECT pg_catalog.to_regclass(name)::oid AS relation
      FROM pg_catalog.unnest(CAST(:children AS text[])) AS each (name)
), above (relation) AS (
    SELECT relation FROM child UNION SELECT inhparent FROM above JOIN pg_catalog.pg_inherits ON inhrelid = relation
), below (relation) AS (
    SELECT relation FROM child UNION SELECT inhrelid FROM below JOIN pg_catalog.pg_inherits ON inhparent = relation
), part (relation) AS (
    SELECT relation FROM root UNION SELECT inhrelid FROM part JOIN pg_catalog.pg_inherits ON inhparent = relation
), deleted AS (
    SELECT relation FROM above UNION SELECT relation FROM below UNION SELECT relation FROM part
)
SELECT
    (SELECT pg_catalog.min(relation::regclass::text) FROM named
      WHERE relation IN (SELECT relation FROM above) OR relation IN (SELECT relation FROM below)) AS read_child,
    (SELECT pg_catalog.min(oid::regclass::text) FROM pg_catalog.pg_class
      WHERE oid IN (SELECT relation FROM named)
        AND (relkind NOT IN ('r', 'p', 'm') OR pg_catalog.row_security_active(oid))) AS view,
    (SELECT pg_catalog.min(proname::text) FROM pg_catalog.pg_proc
      WHERE proname = ANY (CAST(:functions AS text[]))
        AND CASE WHEN pronamespace = 'pg_catalog'::regnamespace
                 THEN proname ~ '_to_xml|^pg_|^ts_(stat|rewrite)$|^(curr|last|next|set)val$'
                 ELSE provolatile <> 'i' END) AS function,
    (SELECT pg_catalog.min(conrelid::regclass::text || '.' || attname)
       FROM pg_catalog.pg_constraint
       JOIN pg_catalog.pg_attribute ON attrelid = conrelid AND attnum = ANY (conkey)
      WHERE contype = 'f' AND confdeltype IN ('n', 'd')
        AND confrelid IN (SELECT relation FROM deleted)
        AND conrelid IN (SELECT relation FROM named)
        AND (attname = ANY (CAST(:columns AS text[])) OR conrelid NOT IN (SELECT relation FROM part))) AS emptied,
    coalesce(
        (SELECT pg_catalog.min(tgname::text) FROM pg_catalog.pg_trigger
          WHERE tgrelid IN (SELECT relation FROM part)
            AND tgtype & 11 = 11 AND tgenabled <> 'D'),  -- BEFORE DELETE FOR EACH ROW, none of PostgreSQL's own
        (SELECT pg_catalog.min(rulename::text) FROM pg_catalog.pg_rewrite
          WHERE ev_class IN (SELECT relation FROM part) AND ev_type = '4'),
        (SELECT pg_catalog.min(polname::text) FROM pg_catalog.pg_policy
          WHERE polrelid IN (SELECT relation FROM part) AND pg_catalog.row_security_active(polrelid))
    ) AS keeper
