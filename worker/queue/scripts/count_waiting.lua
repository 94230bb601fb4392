-- Count the runs that wait for the slot, or for the place under a limit, of a running job; at most as many as asked for.
--
-- A run waits for a slot if it has been due for some time: with a free slot anywhere, a worker would have claimed it. The
-- runs of another queue whose limit is reached do not count. In the job's own queue, only runs of its priority or a
-- higher one count: the others would be claimed after it.
--
-- KEYS line for a place (the queue if there is none), queues: first that of the job
-- ARGV prefix of leases, most, ms for which a run has been due, priority, prefixes of levels and lines of priority, prefix
--      of running jobs, key of the limits set by operators, 1 if the slots count; then the limit of each queue (0 for none)
-- returns the number

-- include clock.lua
-- include checks.lua
local leases, most, priority = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local before = time_ms() - ARGV[3]
local count = 0

local function count_line(line, queue)
    local due = try('ZRANGEBYSCORE', line, '-inf', before, 'LIMIT', 0, most) or {}
    for _, id in ipairs(due) do
        local score = try('ZSCORE', queue, id)
        -- A running job of a stock arq worker stays due. A helper of a walk (HandMark) is not waited for.
        local is_helper = string.find(id, ':hand%-%d+:%d+$') or string.find(id, '^hand%-%d+:%x+$')
        if score and tonumber(score) <= before and not is_helper and redis.call('EXISTS', leases .. id) == 0 then
            count = count + 1
        end
    end
end

if KEYS[1] ~= KEYS[2] then count = math.min(try('ZCARD', KEYS[1]) or 0, most) end
if ARGV[9] ~= '1' then return count end
for at = 2, #KEYS do
    local queue = KEYS[at]
    local limit = whole_number(ARGV[8], queue) or tonumber(ARGV[8 + at])
    local is_full = at > 2 and limit > 0 and (try('ZCARD', ARGV[7] .. queue) or 0) >= limit
    if is_full or not has_type(queue, 'zset') then
        -- its runs cannot use a slot
    elseif at == 2 and priority > 0 then
        for _, level in ipairs(try('ZRANGEBYSCORE', ARGV[5] .. queue, priority, '+inf') or {}) do
            count_line(ARGV[6] .. level .. ':' .. queue, queue)
        end
    else
        count_line(queue, queue)
    end
end
return math.min(count, most)
