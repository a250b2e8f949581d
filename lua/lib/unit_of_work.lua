-- What was read, and what this call has decided since: a later attempt sees an earlier one, and
-- nothing is written before every attempt has its answer (`write_pending`).

-- @include lib/events
-- @include lib/attempt

local FRESH, REDEEMED, HELD, VOID = 0, 1, 2, 3
local AMOUNT_MAX = 9007199254740991 -- 2^53 - 1: what Lua's numbers and JSON's hold exactly
local REMOVED = false
local CALL_ARGUMENTS_MAX = 1000
local MARK = '\31' -- in an order: behind it stands a token that makes its holds its own, and that nobody sees

local pending

-- As if nothing had been decided.
local function forget_pending()
    pending = {
        campaigns = {}, states = {}, used = {}, users = {}, receipts = {}, rolled_back = {},
        used_kind = {}, -- of the key at that position: multi, a hash; balance, a string
        holds = {}, expiries = {}, held = {}, -- by hold id, by hold id, by what is held
        events = {},
    }
end
forget_pending()

-- A number's digits. The same few come again and again: times, amounts.
local texts = {}

local function text(number)
    if not number then
        return ''
    end
    local digits = texts[number]
    if not digits then
        digits = string.format('%.0f', number)
        texts[number] = digits
    end
    return digits
end

local function slots(tables, at)
    local found = tables[at]
    if not found then
        found = {}
        tables[at] = found
    end
    return found
end

local function read_campaign()
    local campaign = pending.campaigns[attempt.campaign_at]
    if not campaign then
        local values = redis.call(
            'HMGET', KEYS[attempt.campaign_at], 'id', 'kind', 'state', 'starts_at_ms', 'ends_at_ms', 'amount', 'currency',
            'max_uses', 'stock', 'per_user_limit', 'budget', 'uses', 'spent'
        )
        campaign = {
            id = values[1], kind = values[2], state = values[3],
            starts_at_ms = tonumber(values[4]), ends_at_ms = tonumber(values[5]),
            amount = values[6] or '', currency = values[7] or '', max_uses = tonumber(values[8]),
            stock = tonumber(values[9]), per_user_limit = tonumber(values[10]), budget = tonumber(values[11]) or AMOUNT_MAX,
            uses = tonumber(values[12]) or 0, spent = tonumber(values[13]) or 0,
            added = 0, added_amount = 0, -- by this call
        }
        pending.campaigns[attempt.campaign_at] = campaign
    end
    return campaign
end

local function read_state()
    if attempt.state_at == 0 then
        return VOID
    end
    return slots(pending.states, attempt.state_at)[attempt.offset]
        or redis.call('BITFIELD_RO', KEYS[attempt.state_at], 'GET', 'u2', '#' .. attempt.offset)[1]
end

local function set_state(state)
    slots(pending.states, attempt.state_at)[attempt.offset] = state
end

-- How often (multi) or how much of it (balance) the code was used so far; 0 for one that is used whole.
local function read_used(campaign)
    if attempt.used_at == 0 then
        return 0
    end
    local known = slots(pending.used, attempt.used_at)[attempt.used_field] or attempt.used_read
    if not known then
        if campaign.kind == 'multi' then
            known = tonumber(redis.call('HGET', KEYS[attempt.used_at], attempt.used_field)) or 0
        else
            known = redis.call('BITFIELD_RO', KEYS[attempt.used_at], 'GET', 'i64', '#' .. attempt.used_field)[1]
        end
        attempt.used_read = known
    end
    return known
end

local function set_used(campaign, value)
    slots(pending.used, attempt.used_at)[attempt.used_field] = value
    pending.used_kind[attempt.used_at] = campaign.kind
end

-- How much the code still holds; nil for one that holds no amount.
local function read_left(campaign)
    return campaign.kind == 'balance' and tonumber(campaign.amount) - read_used(campaign) or nil
end

-- How often the user has succeeded; nil where the campaign does not count that.
local function read_counted()
    if attempt.users_at == 0 then
        return nil
    end
    local known = slots(pending.users, attempt.users_at)[attempt.user_digest] or attempt.counted_read
    if not known then
        known = tonumber(redis.call('HGET', KEYS[attempt.users_at], attempt.user_digest)) or 0
        attempt.counted_read = known
    end
    return known
end

-- Adds to what campaign, code and user have used; what is negative is given back.
local function count_use(campaign, uses, taken)
    campaign.added = campaign.added + uses
    campaign.added_amount = campaign.added_amount + taken
    if campaign.kind == 'multi' then
        set_used(campaign, read_used(campaign) + uses)
    elseif campaign.kind == 'balance' then
        set_used(campaign, read_used(campaign) + taken)
    end
    local counted = uses ~= 0 and read_counted()
    if counted then
        slots(pending.users, attempt.users_at)[attempt.user_digest] = math.max(0, counted + uses)
    end
end

local function shown_order()
    if attempt.order == '' then
        return ''
    end
    local mark = string.find(attempt.order, MARK, 1, true)
    return mark and string.sub(attempt.order, 1, mark - 1) or attempt.order
end

-- Plans an event about the attempt's code; answers its id. Without a redemption it is one itself.
local function add_event(type, redemption, campaign, event_amount)
    local event_at = text(event_ms)
    local event_id = event_at .. '-' .. string.format('%.0f', event_seq)
    event_seq = event_seq + 1
    pending.events[#pending.events + 1] = event_call(
        events_key, event_id, type, redemption or shard .. '-' .. event_id, campaign.id,
        attempt.batch, attempt.serial, attempt.last4, attempt.user, text(event_amount), campaign.currency,
        shown_order(), attempt.key, attempt.actor, event_at
    )
    return event_id
end

local function write_holds()
    if next(pending.holds) == nil then
        return
    end
    redis.call('HLEN', holds_key) -- a key of another type raises here, before anything is written
    redis.call('HLEN', held_key)
    redis.call('ZCARD', expiry_key)
    for id, record in pairs(pending.holds) do
        if record == REMOVED then
            redis.call('HDEL', holds_key, id)
        else
            redis.call('HSET', holds_key, id, record)
        end
    end
    for id, at_ms in pairs(pending.expiries) do
        if at_ms == REMOVED then
            redis.call('ZREM', expiry_key, id)
        else
            redis.call('ZADD', expiry_key, text(at_ms), id)
        end
    end
    for field, id in pairs(pending.held) do
        if id == REMOVED then
            redis.call('HDEL', held_key, field)
        else
            redis.call('HSET', held_key, field, id)
        end
    end
end

-- All of one string together, but no more arguments than Lua unpacks.
local function write_states(at, offsets)
    local call = { 'BITFIELD', KEYS[at] }
    for code, state in pairs(offsets) do
        if #call >= CALL_ARGUMENTS_MAX then
            redis.call(unpack(call))
            call = { 'BITFIELD', KEYS[at] }
        end
        local size = #call
        call[size + 1], call[size + 2], call[size + 3], call[size + 4] = 'SET', 'u2', '#' .. code, state
    end
    redis.call(unpack(call))
end

-- Every key below has been read, so none of these can fail for its type.
local function write_pending()
    write_holds()
    for at, campaign in pairs(pending.campaigns) do
        if campaign.added ~= 0 then
            redis.call('HINCRBY', KEYS[at], 'uses', campaign.added)
        end
        if campaign.added_amount ~= 0 then
            redis.call('HINCRBY', KEYS[at], 'spent', text(campaign.added_amount))
        end
    end
    for at, values in pairs(pending.used) do
        for field, value in pairs(values) do
            if pending.used_kind[at] == 'multi' then
                redis.call('HSET', KEYS[at], field, text(value))
            else
                redis.call('BITFIELD', KEYS[at], 'SET', 'i64', '#' .. field, text(value))
            end
        end
    end
    for at, offsets in pairs(pending.states) do
        write_states(at, offsets)
    end
    for at, counts in pairs(pending.users) do
        for digest, count in pairs(counts) do
            if count == 0 then
                redis.call('HDEL', KEYS[at], digest)
            else
                redis.call('HSET', KEYS[at], digest, count)
            end
        end
    end
    for at, amounts in pairs(pending.rolled_back) do
        for redemption, given_back in pairs(amounts) do
            redis.call('HSET', KEYS[at], redemption, text(given_back))
        end
    end
    local expires_at_s = text((epoch_now + 2) * tonumber(receipt_window_s))
    for at, decided in pairs(pending.receipts) do
        for digest, receipt in pairs(decided) do
            redis.call('HSET', KEYS[at], digest, receipt)
            redis.call('EXPIREAT', KEYS[at], expires_at_s, 'NX')
        end
    end
    for _, event in ipairs(pending.events) do
        redis.call(unpack(event))
    end
end
