-- The sorted sets of priorities (included in other scripts; requires checks.lua).
--
-- A queue with priorities has a sorted set of the levels in use, and for each level a sorted set of its jobs by due
-- time. They are hints about which due jobs to claim first; the queue itself is authoritative.
local function add_to_priority(levels, line, level, due, id)
    if has_type(levels, 'zset') and has_type(line, 'zset') then
        redis.call('ZADD', line, due, id)
        redis.call('ZADD', levels, level, level)
    end
end
