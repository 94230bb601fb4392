-- Keep what a running job holds beside its lease: its place under a limit, and its mark as the one run with its arguments.
--
-- It is called after each renewal of leases, so that neither expires under a job that runs for longer than a week, and both
-- are put back into a Redis that has lost its data. Only the owner of the lease keeps them.
--
-- ARGV owner, prefix of leases, then for each: id, kind (place or unique), key
-- returns the problems

-- include clock.lua
-- include checks.lua
local WEEK = 604800000
local now_ms = time_ms()
for at = 3, #ARGV, 3 do
    local id, kind, key = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    if try('GET', ARGV[2] .. id) == ARGV[1] then
        if kind == 'place' and has_type(key, 'zset') then
            redis.call('ZADD', key, 'NX', now_ms, id)
            redis.call('PEXPIRE', key, WEEK)
        elseif kind == 'unique' and has_type(key, 'string') then
            redis.call('SET', key, id, 'NX', 'PX', WEEK)
            if redis.call('GET', key) == id then redis.call('PEXPIRE', key, WEEK) end
        end
    end
end
return problems
