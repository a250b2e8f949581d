#!lua
-- Redeems the codes that were prepared for a cross-shard transaction that was decided: neither campaign nor code can refuse it.
-- The attempts are the parts of prepare.lua, in the same order. The first one has an idempotency key of the transaction, so a
-- repeated call gets the first answer.
-- Answers {'ok', answer} as lib/answer_together, with a line of redeem.lua for each code; or `lost` for each code, if they are
-- not prepared.

-- @include lib/answer_together
-- @include lib/add_event
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/prepared

local parts, number, record_at, record_name

local function redeem_prepared(prepared_at, nonce)
    if not number then
        parts, number, record_at, record_name = read_parts(prepared_at, nonce), 0, prepared_at, nonce
    end
    local campaign = read_campaign()
    if not parts then
        return ANSWER.lost
    elseif not campaign.id then
        return ANSWER.unpublished
    end
    number = number + 1
    local taken, left, hold_id = unpack(parts[number], 6, 8)
    local event_type = 'redeemed'
    if hold_id ~= '' then
        work.holds[hold_id] = REMOVED
        event_type = 'confirmed'
    end
    if campaign.kind == 'single' then
        set_state(REDEEMED)
    end
    change_prepared(-1)
    return ANSWER.redeemed .. ' ' .. add_event(event_type, nil, campaign, tonumber(taken)) .. ' ' .. taken
        .. (left ~= '' and ' ' .. left or '')
end

local reply = answer_together(redeem_prepared, 2)
if number and number > 0 and string.match(reply[2], '^%S+') == ANSWER.redeemed then
    redis.call('HDEL', KEYS[record_at], record_name)
end
return reply
