-- Checks for keys that other clients may have written (included in other scripts).
--
-- A script checks types before its first write: if a script fails halfway, Redis does not undo its writes. Each problem
-- is added once to `problems` as {key, kind, detail}: `type` and the type that was found, or `value` and the value.
local problems, noted = {}, {}

local function note(key, kind, detail)
    if not noted[key] then
        noted[key] = true
        problems[#problems + 1] = {key, kind, detail}
    end
end

-- Return whether a key has a type, or does not exist.
local function has_type(key, wanted)
    local found = redis.call('TYPE', key).ok
    if found == wanted or found == 'none' then return true end
    note(key, 'type', found)
    return false
end

-- Call a command. If its key has another type, or its value is not a number, note the problem and return nil.
local function try(command, key, ...)
    local answer = redis.pcall(command, key, ...)
    if type(answer) ~= 'table' or not answer.err then return answer end
    if string.find(answer.err, 'WRONGTYPE', 1, true) then
        note(key, 'type', redis.call('TYPE', key).ok)
    elseif string.find(answer.err, 'not an integer', 1, true) or string.find(answer.err, 'overflow', 1, true) then
        note(key, 'value', string.sub(redis.call('GET', key), 1, 100))
    else
        error(answer.err)
    end
    return nil
end

-- Return the number that an operator has set for a field of a hash; nil if there is none, or it is not a whole number.
local function whole_number(key, field)
    local text = try('HGET', key, field)
    if not text then return nil end
    local number = tonumber(text)
    if number and number >= 0 and number < 9007199254740992 and number % 1 == 0 then return number end
    note(key, 'value', field .. ' = ' .. string.sub(text, 1, 100))
    return nil
end
