#!lua
-- Redeems the codes that were prepared for a cross-shard transaction that was decided: neither campaign nor code can refuse it.
-- The attempts are the parts of prepare.lua, in the same order. The first one has an idempotency key of the transaction, so a
-- repeated call gets the first answer.
-- Answers {'ok', answer} as lib/answer_together, with a line of redeem.lua for each code; or `lost` for each code, if they are
-- not prepared.

-- @include lib/answer_together
-- @include lib/add_event
-- @include lib/code_state
-- @include lib/settle_prepared

local function redeem_prepared(prepared_at, nonce)
    local refusal, campaign, taken, left, hold_id, _, ending = settle_part(prepared_at, nonce, ANSWER.lost)
    if refusal then
        return refusal
    end
    if campaign.kind == 'single' then
        set_state(REDEEMED)
    end
    local event_id
    if hold_id ~= '' then
        work.holds[hold_id] = REMOVED
        event_id = add_event('confirmed', nil, campaign, tonumber(taken), hold_id, ending)
    else
        event_id = add_event('redeemed', nil, campaign, tonumber(taken), nil, ending)
    end
    return ANSWER.redeemed .. ' ' .. event_id .. ' ' .. taken .. (left ~= '' and ' ' .. left or '')
end

local function main()
    local reply = answer_together(redeem_prepared)
    remove_settled(reply, ANSWER.redeemed)
    return reply
end
