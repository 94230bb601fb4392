-- Renew the marks of a running job: its place under a limit, and its lock as the only run with its arguments.
--
-- A worker calls this after each renewal of leases, so that the marks of a job that runs for longer than a week do not
-- expire, and so that they are restored in a Redis that has lost its data. Only the owner of the lease may renew them.
--
-- KEYS lease of the first job, which names the node of a cluster
-- ARGV owner, prefix of leases, then for each: id, kind (place or unique), key, number of the claim
-- returns the problems

-- include checks.lua
local WEEK = 604800000
for at = 3, #ARGV, 4 do
    local id, kind, key, number = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    if try('GET', ARGV[2] .. id) == ARGV[1] then
        if kind == 'place' and has_type(key, 'zset') then
            redis.call('ZADD', key, 'NX', number, id)
            redis.call('PEXPIRE', key, WEEK)
        elseif kind == 'unique' and has_type(key, 'string') then
            redis.call('SET', key, id, 'NX', 'PX', WEEK)
            if redis.call('GET', key) == id then redis.call('PEXPIRE', key, WEEK) end
        end
    end
end
return problems
