-- The server's clock (a part of other scripts): all times are its own, whatever those of workers and clients are.
local function time_ms()
    local now = redis.call('TIME')
    return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- When a job is due: that time in ms where the second is 1, else so many ms from now on.
local function due_ms(value, is_time)
    return is_time == '1' and tonumber(value) or time_ms() + value
end
