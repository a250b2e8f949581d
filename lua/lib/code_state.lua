-- Reads and sets the states of codes: two bits each of a string (engine/store/keys.py).

-- @include lib/unit_of_work

local FRESH, REDEEMED, HELD, VOID = 0, 1, 2, 3
local CODES_OF_BYTE = 4
local FACTOR = { [0] = 64, 16, 4, 1 } -- the first code of a byte has its highest bits

local state_bytes -- by position in KEYS: the bytes of the string that have this call's codes
local first_byte, last_byte

each_call(function()
    state_bytes, first_byte, last_byte = {}, {}, {}
end)

-- Finds which bytes of each string this call needs. Each string is read once, however many of its codes are in the call.
local function find_bytes()
    for number, at in ipairs(state_at) do
        local at_byte = math.floor(offset[number] / CODES_OF_BYTE)
        if not first_byte[at] then
            first_byte[at], last_byte[at] = at_byte, at_byte
        elseif at_byte < first_byte[at] then
            first_byte[at] = at_byte
        elseif at_byte > last_byte[at] then
            last_byte[at] = at_byte
        end
    end
end

-- Returns the state that the code had before this call.
local function read_stored_state(at, position)
    if not state_bytes[at] then
        if not first_byte[at] then
            find_bytes()
        end
        state_bytes[at] = redis.call('GETRANGE', KEYS[at], first_byte[at], last_byte[at])
    end
    local in_byte = position % CODES_OF_BYTE
    local byte = string.byte(state_bytes[at], (position - in_byte) / CODES_OF_BYTE - first_byte[at] + 1)
    return byte and math.floor(byte / FACTOR[in_byte]) % 4 or FRESH -- the string ends behind the last code that was used
end

local function read_state()
    local at = state_at[attempt]
    if at == 0 then
        return VOID
    end
    local decided = work.states[at]
    return decided and decided[offset[attempt]] or read_stored_state(at, offset[attempt])
end

local function set_state(state)
    slots(work.states, state_at[attempt])[offset[attempt]] = state
end
