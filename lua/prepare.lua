#!lua
-- Prepares codes of one shard for a cross-shard transaction (lib/prepared.lua): all of them, or none. `nonce` is that of the
-- transaction's worker. `transaction` says where its commit record is, for whoever finds the codes if that worker is gone.
-- Answers {'ok', answer} as lib/answer_together, with `prepared` or a refusal for each code.

-- @include lib/answer_together
-- @include lib/description
-- @include lib/prepared
-- @include lib/redeem

local parts, prepared_by_us
local record_at, record_name, record_transaction -- those of the latest attempt: all have the same

each_call(function()
    parts, prepared_by_us = {}, {}
    record_at, record_name, record_transaction = nil, nil, nil
end)

local function use_up(hold)
    work.holds[hold.id], work.expiries[hold.id] = PREPARED, REMOVED
    work.held[code_name()] = REMOVED
end

local function prepare(ending, prepared_at, nonce, transaction)
    record_at, record_name, record_transaction = prepared_at, nonce, transaction
    local campaign, field = read_campaign(), prepared_field()
    if campaign.kind == 'single' and prepared_by_us[field] then
        return ANSWER.already_redeemed
    end
    local refusal, taken, left, hold = decide_redemption(campaign)
    if refusal then
        return refusal
    elseif hold then
        use_up(hold)
    else
        count_use(campaign, 1, taken or 0)
        if campaign.kind == 'single' then
            set_state(HELD)
        end
    end
    change_prepared(1)
    prepared_by_us[field] = true
    local code = describe()
    parts[#parts + 1] = {
        campaign.id, code.batch, code.serial, code.last4, code.user, text(taken), text(left),
        hold and hold.id or '', hold and hold.record or '', ending,
    }
    return ANSWER.prepared
end

local function main()
    local reply = answer_together(prepare, ANSWER.prepared)
    if string.match(reply[2], '^%S+') == ANSWER.prepared then
        redis.call('HSET', KEYS[record_at], record_name, cmsgpack.pack({ record_transaction, parts }))
    end
    return reply
end
