-- The server's clock (included in other scripts). All times come from it, never from the clocks of workers and clients.
local function time_ms()
    local now = redis.call('TIME')
    return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- Return the due time of a job: `value` in ms since 1970 if `is_time` is '1', otherwise `value` ms from now.
local function due_ms(value, is_time)
    return is_time == '1' and tonumber(value) or time_ms() + value
end
