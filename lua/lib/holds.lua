-- Reads and writes holds: a code, or part of a balance, reserved for an order. What a hold has taken counts as redeemed.
-- The record of a hold has one line for each of: expires at (ms), order, user, amount, campaign, batch, serial, last4, actor.
-- For a day after the hold has expired, EXPIRED replaces the record, so that late calls get `hold_expired`. While a combined
-- order over several shards uses the hold up, its record is elsewhere (lib/prepared.lua).

-- @include lib/description
-- @include lib/text
-- @include lib/unit_of_work

local EXPIRED = 'expired'
local EXPIRED_KEPT_MS = 86400000

-- The field for a hold in the hash of held codes. A single code has one hold at most; other codes have one for each order.
local function held_field(campaign)
    if campaign.kind == 'single' then
        return code_name()
    end
    return code_name() .. ':' .. describe().order
end

-- Returns the record of a hold; EXPIRED; or nil.
local function read_hold_record(id)
    local record = work.holds[id]
    if record == nil then
        record = redis.call('HGET', holds_key, id)
    end
    return record or nil
end

local function parse_hold(id, record)
    local expires_at_ms, hold_order, hold_user, hold_amount = string.match(record, '^(%d+)\n([^\n]*)\n([^\n]*)\n(%d*)\n')
    return {
        id = id, expires_at_ms = tonumber(expires_at_ms), order = hold_order, user = hold_user,
        amount = tonumber(hold_amount), record = record,
    }
end

-- Returns the hold on the attempt's code, for codes other than single the hold of the attempt's order; or nil.
local function find_hold(campaign)
    local field = held_field(campaign)
    local id = work.held[field]
    if id == nil then
        id = redis.call('HGET', held_key, field)
    end
    local record = id and read_hold_record(id)
    return record and record ~= EXPIRED and parse_hold(id, record) or nil
end

local function keep_hold(campaign, id, expires_at_ms, hold_amount)
    local code = describe()
    work.holds[id] = table.concat({
        text(expires_at_ms), code.order, code.user, text(hold_amount), campaign.id,
        code.batch, code.serial, code.last4, code.actor, '',
    }, '\n')
    work.expiries[id] = expires_at_ms
    work.held[held_field(campaign)] = id
end

-- Ends a hold. The amount that it has taken stays counted.
local function remove_hold(campaign, id)
    work.holds[id], work.expiries[id] = REMOVED, REMOVED
    work.held[held_field(campaign)] = REMOVED
end

local function keep_expired(campaign, id)
    remove_hold(campaign, id)
    work.holds[id], work.expiries[id] = EXPIRED, now_ms + EXPIRED_KEPT_MS
end
