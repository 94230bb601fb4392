-- Let runs of one job with the same arguments begin their shared walks one after the other, until the transaction ends.
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(:call, 1281))
