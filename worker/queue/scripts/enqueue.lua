-- Enqueue a run once for its id. If a run of that id waits or runs, or its result is known, do nothing.
--
-- A unique job is enqueued once for its key. Its lock holds the id of the run that owns it. The lock counts for a time,
-- or while that run is in the queue, or only while it waits. A requeue does not use this script, so a run is not
-- blocked by its own lock.
--
-- With `replace`, the run replaces the payload and the due time of the waiting run. A command that cancels an earlier
-- run of this id is deleted. A run with a priority is also in the line of its level, and in no other line.
--
-- KEYS queue, cancelled, lock (the queue if there is none: an ACL may allow no other name), levels of priority in use
-- ARGV id, payload, delay in ms, or due time in ms if the next is 1, whether it is; prefixes of payloads, results and
--      leases; 1 to replace; when the lock counts (time, active, waiting), its lifetime in ms; level (0 for none),
--      prefix of lines; weight and flow of a fair run ('' for any other)
-- returns {1 if it was enqueued, 2 if it replaced a run, 0 if its id is known, or -1 if a key is unsound; id of the
--         run, or the problems}

-- include clock.lua
-- include checks.lua
-- include priority.lua
-- include fair.lua
-- include enqueue_run.lua
if not has_type(KEYS[1], 'zset') then return {-1, problems} end
local names = {payload = ARGV[5], result = ARGV[6], lease = ARGV[7], priority = ARGV[12], cancelled = KEYS[2]}
return {enqueue_run({
    queue = KEYS[1], id = ARGV[1], payload = ARGV[2], due = due_ms(ARGV[3], ARGV[4]), levels = KEYS[4],
    lock = KEYS[3] ~= KEYS[1] and KEYS[3], counts = ARGV[9], lock_ms = ARGV[10], replace = ARGV[8] == '1',
    level = ARGV[11], fair = ARGV[13]
}, names)}
