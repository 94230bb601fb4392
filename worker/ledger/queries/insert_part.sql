-- Record a part of a sink, in the transaction of the batch that it was written for.
-- $1 run, $2 step, $3 directory, $4 name, $5 rows, $6 bytes, $7 SHA-256
INSERT INTO worker.part (run_id, step, directory, name, rows, bytes, sha256)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::bigint, $6::bigint, $7::text)
