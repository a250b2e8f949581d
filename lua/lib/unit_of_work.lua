-- The unit of work: what this call has read, and what it has decided so far. A later attempt sees an earlier one, and
-- nothing is written before every attempt has its answer (lib/write_work).

-- @include lib/attempt

local REMOVED = false

local work

-- Starts the unit of work, or starts it again as if nothing had been decided.
local function begin_work()
    work = {
        campaigns = {}, states = {}, used = {}, users = {}, idempotency = {}, rolled_back = {},
        used_kind = {}, -- of the key at that position: multi, a hash; balance, a string
        holds = {}, expiries = {}, held = {}, -- by hold id, by hold id, by what is held
        events = {},
    }
end
begin_work()

-- The table for the key at a position in KEYS: made when it is first asked for.
local function slots(tables, at)
    local found = tables[at]
    if not found then
        found = {}
        tables[at] = found
    end
    return found
end
