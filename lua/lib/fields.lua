-- Reads fields of hashes: of each hash all that the attempts of the call need, with one command.

local ARGUMENTS_MAX = 1000 -- Lua can unpack only a limited number of values

-- `key_at` and `field_at` are columns: positions in KEYS and, for the same attempts, in ARGV. Adds the values to `found`, by
-- position in KEYS and field; `behind` is added to that position to get the key that is read.
local function read_fields(found, key_at, field_at, behind)
    local calls = {}
    for number, at in pairs(key_at) do
        local call = calls[at]
        if not call then
            call = { 'HMGET', KEYS[at + behind] }
            calls[at] = call
        end
        call[#call + 1] = ARGV[field_at[number]]
    end
    for at, call in pairs(calls) do
        local values = redis.call(unpack(call))
        local fields = found[at]
        if not fields then
            fields = {}
            found[at] = fields
        end
        for number = 3, #call do
            local value = values[number - 2]
            if value then fields[call[number]] = value end
        end
    end
end
