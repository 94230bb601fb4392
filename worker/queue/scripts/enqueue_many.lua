-- Put many jobs into a queue, each once for its id (see enqueue.lua).
--
-- Members of a group whose ids end with their places are put there once also when their results are forgotten.
--
-- KEYS queue, cancelled, levels of priority that are in use, line of this level (the queue for none), group (the queue for
--      none)
-- ARGV prefixes of payload and result, level, delay in ms, or due time in ms where the next is 1, whether it is, then id
--      and payload of each job
-- returns the places, from 1, of those whose id is known

-- include clock.lua
local due = due_ms(ARGV[4], ARGV[5])
local ordered = redis.call('EXISTS', KEYS[2]) == 1
local known, added = {}, {}
local called = KEYS[5] ~= KEYS[1] and redis.call('HEXISTS', KEYS[5], 'called') == 1
local function is_done(id)
    return KEYS[5] ~= KEYS[1] and (called or redis.call('HEXISTS', KEYS[5] .. ':done', string.match(id, '%d+$')) == 1)
end
for at = 6, #ARGV, 2 do
    local id = ARGV[at]
    if is_done(id) or redis.call('EXISTS', ARGV[2] .. id) == 1 or not redis.call('SET', ARGV[1] .. id, ARGV[at + 1], 'NX') then
        known[#known + 1] = (at - 4) / 2
    else
        if ordered then redis.call('SREM', KEYS[2], id) end
        added[#added + 1] = due
        added[#added + 1] = id
    end
end
if #added > 0 then
    redis.call('ZADD', KEYS[1], unpack(added))
    if KEYS[4] ~= KEYS[1] then
        redis.call('ZADD', KEYS[4], unpack(added))
        redis.call('ZADD', KEYS[3], ARGV[3], ARGV[3])
    end
end
return known
