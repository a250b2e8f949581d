-- The unit of work: what this call has read and decided so far. A later attempt of the call sees the decisions of earlier
-- ones. Nothing is written before every attempt has its answer (lib/write_work).

-- @include lib/attempt

local REMOVED = false

local work

-- Starts the unit of work, or starts it again as if nothing had been decided.
local function begin_work()
    work = {
        campaigns = {}, states = {}, used = {}, users = {}, idempotency = {}, rolled_back = {},
        used_kind = {}, -- for each position in KEYS: multi (the key is a hash) or balance (a string)
        holds = {}, expiries = {}, held = {}, -- by hold id, by hold id, by field in the hash of held codes
        events = {}, -- lines of the stream's next entry
    }
end
each_call(begin_work)

-- Returns the table for the key at a position in KEYS. Creates it at its first use.
local function slots(tables, at)
    local found = tables[at]
    if not found then
        found = {}
        tables[at] = found
    end
    return found
end
