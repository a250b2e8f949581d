-- Reads and sets the state of the attempt's code: two bits of a string (engine/store/keys.py).

-- @include lib/unit_of_work

local FRESH, REDEEMED, HELD, VOID = 0, 1, 2, 3

local function read_state()
    if attempt.state_at == 0 then
        return VOID
    end
    return slots(work.states, attempt.state_at)[attempt.offset]
        or redis.call('BITFIELD_RO', KEYS[attempt.state_at], 'GET', 'u2', '#' .. attempt.offset)[1]
end

local function set_state(state)
    slots(work.states, attempt.state_at)[attempt.offset] = state
end
