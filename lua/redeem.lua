#!lua
-- Redeems a batch of attempts, each answered for itself, in their order.
-- Answers {'ok', answer…}, one for each attempt: `redeemed <stream id> <amount>`, and of a code that
-- holds an amount ` <balance left>`; a refusal's code; `unpublished`, where this shard has not the campaign as the
-- caller knows it, and which no receipt keeps; or `replayed <the first answer>`. Or, with nothing done:
-- {'stale'}: this shard knows another configuration; {'unpublished'}: it knows none;
-- {'epoch', n}: receipts are now kept under epoch n.
local events_key, version_key = KEYS[1], KEYS[2]
local shard, version, receipt_epoch, receipt_window_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local first_attempt, attempt_width = 5, 19
-- Of the fields of an attempt, those named _at are positions in KEYS, 0 for none.

-- @include lib/clock
-- @include lib/events
-- @include lib/kinds
-- @include lib/receipts

local REDEEMED, HELD, VOID = 1, 2, 3
local AMOUNT_MAX = 9007199254740991 -- 2^53 - 1: what Lua's numbers and JSON's hold exactly
local REFUSAL_OF_STATE = { [REDEEMED] = 'already_redeemed', [HELD] = 'held_by_another_order', [VOID] = 'code_void' }

local shard_version = redis.call('GET', version_key)
if not shard_version then
    return { 'unpublished' }
elseif tonumber(shard_version) > tonumber(version) then
    return { 'stale' }
end
local now_ms, event_ms, event_seq = read_clock(events_key)
local epoch_now = math.floor(event_ms / 1000 / tonumber(receipt_window_s))
if epoch_now ~= tonumber(receipt_epoch) then
    return { 'epoch', epoch_now }
end

-- What was read and what this batch has decided since, so that a later attempt sees an earlier one.
local campaigns, states, used, users, receipts = {}, {}, {}, {}, {}
local used_kind = {} -- of the key at that position: multi, a hash; balance, a string
local events, answers = {}, { 'ok' }

local function slots(tables, at)
    local found = tables[at]
    if not found then
        found = {}
        tables[at] = found
    end
    return found
end

local function read_campaign(at)
    local campaign = campaigns[at]
    if not campaign then
        local values = redis.call(
            'HMGET', KEYS[at], 'id', 'kind', 'state', 'starts_at_ms', 'ends_at_ms', 'amount', 'currency',
            'max_uses', 'stock', 'per_user_limit', 'budget', 'redeemed', 'spent'
        )
        campaign = {
            id = values[1], kind = values[2], state = values[3],
            starts_at_ms = tonumber(values[4]), ends_at_ms = tonumber(values[5]),
            amount = values[6] or '', currency = values[7] or '', max_uses = tonumber(values[8]),
            stock = tonumber(values[9]), per_user_limit = tonumber(values[10]), budget = tonumber(values[11]) or AMOUNT_MAX,
            redeemed = tonumber(values[12]) or 0, spent = tonumber(values[13]) or 0,
            added = 0, added_amount = 0, -- by this batch
        }
        campaigns[at] = campaign
    end
    return campaign
end

-- How often or how much a code was used so far; 0 for a code that is used whole.
local function read_used(campaign, used_at, used_field)
    local known = used_at ~= 0 and slots(used, used_at)[used_field]
    if known then
        return known
    elseif campaign.kind == 'multi' then
        return tonumber(redis.call('HGET', KEYS[used_at], used_field)) or 0
    elseif campaign.kind == 'balance' then
        return redis.call('BITFIELD', KEYS[used_at], 'GET', 'i64', '#' .. used_field)[1]
    end
    return 0
end

local function text(number)
    return number and string.format('%.0f', number) or ''
end

local function refusal_of_campaign(campaign)
    if campaign.state == 'ended' then
        return 'campaign_ended'
    elseif campaign.state ~= 'active' then
        return 'campaign_inactive'
    elseif campaign.starts_at_ms and now_ms < campaign.starts_at_ms then
        return 'campaign_not_started'
    elseif campaign.ends_at_ms and now_ms >= campaign.ends_at_ms then
        return 'campaign_ended'
    end
    return nil
end

-- Read and decide: nothing is written before every attempt has its answer.
for at = first_attempt, #ARGV, attempt_width do
    local campaign_at, state_at, used_at, users_at, receipts_at, receipts_before_at,
        offset, used_field, user_digest, receipt_digest, fingerprint,
        batch, serial, last4, user, amount, order, key, actor = unpack(ARGV, at, at + attempt_width - 1)
    campaign_at, state_at, users_at = tonumber(campaign_at), tonumber(state_at), tonumber(users_at)
    used_at, receipts_at = tonumber(used_at), tonumber(receipts_at)

    local answer
    local decided = receipts_at ~= 0 and slots(receipts, receipts_at) or nil
    if decided then
        local receipt = decided[receipt_digest]
            or redis.call('HGET', KEYS[receipts_at], receipt_digest)
            or redis.call('HGET', KEYS[tonumber(receipts_before_at)], receipt_digest)
        answer = receipt and answer_from_receipt(receipt, fingerprint)
    end

    if not answer then
        local campaign = read_campaign(campaign_at)
        local state = slots(states, state_at)[offset]
            or redis.call('BITFIELD', KEYS[state_at], 'GET', 'u2', '#' .. offset)[1]
        local counted = users_at ~= 0
            and (slots(users, users_at)[user_digest] or tonumber(redis.call('HGET', KEYS[users_at], user_digest)) or 0)

        local taken, used_after, left
        answer = not campaign.id and 'unpublished' or refusal_of_campaign(campaign) or REFUSAL_OF_STATE[state]
        if not answer then
            answer, taken, used_after, left = take_from_code(campaign, read_used(campaign, used_at, used_field), amount)
        end
        if answer then -- luacheck: ignore 542
        elseif campaign.stock and campaign.redeemed + campaign.added >= campaign.stock then
            answer = 'sold_out'
        elseif campaign.spent + campaign.added_amount + (taken or 0) > campaign.budget then
            answer = 'budget_exceeded'
        elseif campaign.per_user_limit and not counted then
            answer = 'unpublished' -- the caller knows of the limit's end, this shard not yet
        elseif campaign.per_user_limit and counted >= campaign.per_user_limit then
            answer = 'customer_limit_exceeded'
        else
            local event_id = string.format('%.0f-%.0f', event_ms, event_seq)
            event_seq = event_seq + 1
            campaign.added = campaign.added + 1
            campaign.added_amount = campaign.added_amount + (taken or 0)
            if campaign.kind == 'single' then
                slots(states, state_at)[offset] = REDEEMED
            else
                slots(used, used_at)[used_field] = used_after
                used_kind[used_at] = campaign.kind
            end
            if counted then
                slots(users, users_at)[user_digest] = counted + 1
            end
            events[#events + 1] = {
                event_id, 'redeemed', shard .. '-' .. event_id, campaign.id, batch, serial, last4, user,
                text(taken), campaign.currency, order, key, actor, text(event_ms),
            }
            answer = 'redeemed ' .. event_id .. ' ' .. text(taken) .. (left and ' ' .. text(left) or '')
        end
        if decided and answer ~= 'unpublished' then
            decided[receipt_digest] = fingerprint .. answer
        end
    end
    answers[#answers + 1] = answer
end

-- Write. Every key below has been read above, so none of these can fail for its type.
for at, campaign in pairs(campaigns) do
    if campaign.added > 0 then
        redis.call('HINCRBY', KEYS[at], 'redeemed', campaign.added)
        if campaign.added_amount > 0 then
            redis.call('HINCRBY', KEYS[at], 'spent', text(campaign.added_amount))
        end
    end
end
for at, values in pairs(used) do
    for field, value in pairs(values) do
        if used_kind[at] == 'multi' then
            redis.call('HSET', KEYS[at], field, text(value))
        else
            redis.call('BITFIELD', KEYS[at], 'SET', 'i64', '#' .. field, text(value))
        end
    end
end
for at, offsets in pairs(states) do
    for offset, state in pairs(offsets) do
        redis.call('BITFIELD', KEYS[at], 'SET', 'u2', '#' .. offset, state)
    end
end
for at, counts in pairs(users) do
    for user_digest, count in pairs(counts) do
        redis.call('HSET', KEYS[at], user_digest, count)
    end
end
for at, decided in pairs(receipts) do
    local expires_at_s = string.format('%.0f', (epoch_now + 2) * tonumber(receipt_window_s))
    for receipt_digest, receipt in pairs(decided) do
        redis.call('HSET', KEYS[at], receipt_digest, receipt)
        redis.call('EXPIREAT', KEYS[at], expires_at_s, 'NX')
    end
end
for _, event in ipairs(events) do
    append_event(events_key, unpack(event))
end
return answers
