-- The sorted sets of priorities (a part of other scripts; it needs checks.lua).
--
-- A queue with priorities has a sorted set of the levels in use, and for each level a sorted set of its jobs by due time.
-- They are hints that say which of the due jobs to claim first; the queue itself has the truth.
local function add_to_priority(levels, line, level, due, id)
    if has_type(levels, 'zset') and has_type(line, 'zset') then
        redis.call('ZADD', line, due, id)
        redis.call('ZADD', levels, level, level)
    end
end
