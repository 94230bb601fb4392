-- Return a directory with committed parts of a step that the attempt has not opened.
-- $1 run, $2 step, $3 the directories that it has opened
SELECT directory FROM worker.part
 WHERE run_id = $1::text AND step = $2::text AND directory <> ALL ($3::text[])
 LIMIT 1
