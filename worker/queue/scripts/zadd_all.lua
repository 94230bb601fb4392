-- Add any number of members to a sorted set (included in other scripts): Lua cannot unpack more than about 8,000
-- values.
local function zadd_all(key, values)
    for first = 1, #values, 1000 do
        redis.call('ZADD', key, unpack(values, first, math.min(first + 999, #values)))
    end
end
