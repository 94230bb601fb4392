-- Record orders that were given with redis-cli: those that are in force and not marked, or marked and no longer in
-- force. A change that a later one has undone is skipped: a slow worker may report it after the others. An entry that
-- Longhaul has removed because its run has ended is not recorded.
--
-- KEYS worker:ordered, worker:orders, worker:events
-- ARGV name of the writer, time, most entries of a stream, prefix of mirrors, prefix of jobs, and for each change: the
--      order ('' for none), the key, the target, its mark, the value in force ('' if it is in force no longer), targets
--      and details as JSON
-- Returns the number of recorded orders.
local function read(key, name)
    local kind = redis.call('TYPE', key).ok
    if kind == 'set' then return redis.call('SISMEMBER', key, name) == 1 and '1' or '' end
    if kind == 'hash' then return redis.call('HGET', key, name) or '' end
    return ''
end

local recorded = 0
for at = 6, #ARGV, 7 do
    local order, key, name, mark, value = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    local now, is_new = read(key, name), false
    if value ~= '' and now ~= '' and tonumber(now) == tonumber(value) then
        is_new = redis.call('HGET', KEYS[1], mark) ~= value
        if is_new then redis.call('HSET', KEYS[1], mark, value) end
    elseif value == '' and now == '' then
        is_new = redis.call('HDEL', KEYS[1], mark) == 1
            and not (redis.call('EXISTS', ARGV[4] .. name) == 1 and redis.call('EXISTS', ARGV[5] .. name) == 0)
    end
    if is_new and order ~= '' then
        recorded = recorded + 1
        for place = 2, 3 do
            redis.call('XADD', KEYS[place], 'MAXLEN', '~', ARGV[3], '*', 'event', 'ordered', 'order', order, 'by',
                ARGV[1], 'at', ARGV[2], 'targets', ARGV[at + 5], 'details', ARGV[at + 6])
        end
    end
end
return recorded
