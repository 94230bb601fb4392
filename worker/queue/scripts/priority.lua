-- A job stands in the line of its priority (a part of other scripts, see ack_and_claim.lua), which is one of those in use.
local function stand_in_line(levels, line, level, due, id)
    redis.call('ZADD', line, due, id)
    redis.call('ZADD', levels, level, level)
end
