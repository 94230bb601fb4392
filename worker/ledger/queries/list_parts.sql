-- List the committed parts of a sink, in the order in which they were written.
SELECT name, rows, bytes, sha256 FROM worker.part WHERE run_id = :run_id AND directory = :directory ORDER BY id
