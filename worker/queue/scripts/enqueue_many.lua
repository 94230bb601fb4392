-- Enqueue many runs, each once for its id (see enqueue.lua).
--
-- A member of a group, whose id ends with its place, is enqueued once even after its result has expired.
--
-- KEYS queue, cancelled, levels of priority in use, line of this level (the queue for none), group (the queue for none)
-- ARGV prefixes of payloads and results, level, delay in ms, or due time in ms if the next is 1, whether it is; 3 if the
--      runs are fair, otherwise 2; then of each run id, payload and, if it is fair, its weight and flow
-- returns the indices, from 1, of runs whose id is known; or {problems}, in a table, if a key is unsound

-- include clock.lua
-- include zadd_all.lua
-- include checks.lua
-- include fair.lua
local is_group, has_priority = KEYS[5] ~= KEYS[1], KEYS[4] ~= KEYS[1]
local done = KEYS[5] .. ':done'
local are_sound = has_type(KEYS[1], 'zset')
if is_group then are_sound = has_type(KEYS[5], 'hash') and has_type(done, 'hash') and are_sound end
if not are_sound then return {problems} end
has_priority = has_priority and has_type(KEYS[3], 'zset') and has_type(KEYS[4], 'zset')
local due = due_ms(ARGV[4], ARGV[5])
local has_cancelled = redis.call('EXISTS', KEYS[2]) == 1 and has_type(KEYS[2], 'set')
local known, added, flows = {}, {}, {}
local called = is_group and redis.call('HEXISTS', KEYS[5], 'called') == 1
local function is_done(id)
    return is_group and (called or redis.call('HEXISTS', done, string.match(id, '%d+$')) == 1)
end
local line, width = has_priority and KEYS[4] or KEYS[1], tonumber(ARGV[6])
for at = 7, #ARGV, width do
    local id = ARGV[at]
    if is_done(id) or redis.call('EXISTS', ARGV[2] .. id) == 1 or not redis.call('SET', ARGV[1] .. id, ARGV[at + 1], 'NX') then
        known[#known + 1] = (at - 7) / width + 1
    else
        if has_cancelled then redis.call('SREM', KEYS[2], id) end
        added[#added + 1] = due
        added[#added + 1] = id
        if width == 3 then flows[#flows + 1] = {id, ARGV[at + 2]} end
    end
end
if #added > 0 then
    zadd_all(KEYS[1], added)
    if has_priority then
        zadd_all(KEYS[4], added)
        redis.call('ZADD', KEYS[3], ARGV[3], ARGV[3])
    end
    local now_ms = time_ms()
    for _, run in ipairs(flows) do
        if run[2] ~= '' then add_fair(line, run[1], run[2], due, now_ms) end
    end
end
return known
