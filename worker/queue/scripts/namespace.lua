-- The names of keys in a namespace (the first part of each script there; namespace.py replaces the name).
--
-- The scripts know plain names. Here, a key gets the prefix when the server is called, and the KEYS lose it. So the
-- names in values, in answers and in the fields of hashes are plain, and no key outside the namespace can be named.
--
-- The last of KEYS exists never. While a cluster moves the slot to another node, the server therefore refuses to run the
-- script (TRYAGAIN or ASK), in place of running it over the keys that are still there.
local NAMESPACE = '{}:'
local server, qualified = redis, KEYS
local KEYS = {}
for place = 1, #qualified - 1 do KEYS[place] = string.sub(qualified[place], #NAMESPACE + 1) end

local function qualify(command, key, ...)
    if key == nil then return command end  -- TIME
    if command ~= 'DEL' and command ~= 'EXISTS' then return command, NAMESPACE .. key, ... end
    local names = {key, ...}
    for place = 1, #names do names[place] = NAMESPACE .. names[place] end
    return command, unpack(names)
end

local redis = {
    call = function(...) return server.call(qualify(...)) end,
    pcall = function(...) return server.pcall(qualify(...)) end
}
