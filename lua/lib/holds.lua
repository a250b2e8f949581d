-- Holds: a code, or part of a balance, reserved for an order. Everything a hold has taken is counted
-- as if it were redeemed. Its record: `<expires at, ms> order user amount campaign batch serial last4 actor`,
-- a line each, or EXPIRED for a day after it has: so that whoever comes too late is told so.

-- @include lib/unit_of_work

local EXPIRED = 'expired'
local EXPIRED_KEPT_MS = 86400000

-- What at most one order can hold at a time: a code that is used whole, or one order's part of another.
local function held_field(campaign)
    if campaign.kind == 'single' then
        return attempt.batch .. ':' .. attempt.serial
    end
    return attempt.batch .. ':' .. attempt.serial .. ':' .. attempt.order
end

-- The record of a hold; EXPIRED; or nil.
local function read_hold_record(id)
    local record = pending.holds[id]
    if record == nil then
        record = redis.call('HGET', holds_key, id)
    end
    return record or nil
end

local function parse_hold(id, record)
    local expires_at_ms, hold_order, hold_user, hold_amount = string.match(record, '^(%d+)\n([^\n]*)\n([^\n]*)\n(%d*)\n')
    return {
        id = id, expires_at_ms = tonumber(expires_at_ms), order = hold_order, user = hold_user,
        amount = tonumber(hold_amount),
    }
end

-- The hold on what the attempt is about, or nil.
local function find_hold(campaign)
    local field = held_field(campaign)
    local id = pending.held[field]
    if id == nil then
        id = redis.call('HGET', held_key, field)
    end
    local record = id and read_hold_record(id)
    return record and record ~= EXPIRED and parse_hold(id, record) or nil
end

local function keep_hold(campaign, id, expires_at_ms, hold_amount)
    pending.holds[id] = table.concat({
        text(expires_at_ms), attempt.order, attempt.user, text(hold_amount), campaign.id,
        attempt.batch, attempt.serial, attempt.last4, attempt.actor, '',
    }, '\n')
    pending.expiries[id] = expires_at_ms
    pending.held[held_field(campaign)] = id
end

-- Ends a hold; what it had taken stays counted.
local function remove_hold(campaign, id)
    pending.holds[id], pending.expiries[id] = REMOVED, REMOVED
    pending.held[held_field(campaign)] = REMOVED
end

local function keep_expired(campaign, id)
    remove_hold(campaign, id)
    pending.holds[id], pending.expiries[id] = EXPIRED, now_ms + EXPIRED_KEPT_MS
end

-- `held_by_another_order` and the seconds after which it no longer is; nil where the attempt's order holds
-- it; `due` where the hold has expired, and was not given back yet.
local function refusal_of_hold(hold)
    if now_ms >= hold.expires_at_ms then
        return 'due'
    elseif attempt.order == '' or hold.order ~= attempt.order or hold.user ~= attempt.user then
        return 'held_by_another_order ' .. text(math.ceil((hold.expires_at_ms - now_ms) / 1000))
    end
    return nil
end

local due -- whether holds have expired that were not given back yet; read once, when they could matter

local function holds_are_due()
    if due == nil then
        due = #redis.call('ZRANGEBYSCORE', expiry_key, '-inf', text(now_ms), 'LIMIT', 0, 1) > 0
    end
    return due
end

-- Turns a hold into a redemption of `taken`, at most what it holds; answers the event's id, and the
-- balance left. The rest goes back.
local function confirm_hold(campaign, hold, taken)
    if campaign.kind == 'single' then
        set_state(REDEEMED)
    end
    if hold.amount and taken ~= hold.amount then
        count_use(campaign, 0, taken - hold.amount)
    end
    remove_hold(campaign, hold.id)
    return add_event('confirmed', nil, campaign, taken), read_left(campaign)
end
