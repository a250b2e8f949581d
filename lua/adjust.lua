#!lua
-- Adds the attempt's `amount` to balances. The amount may be negative.
-- Answers, one for each attempt: `adjusted <event id> <balance left>`, a refusal, or `replayed <the first answer>`.

-- @include lib/answer_each
-- @include lib/add_event
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/usage

local function adjust(ending)
    local campaign = read_campaign()
    if not campaign.id then
        return ANSWER.unpublished
    elseif campaign.kind ~= 'balance' then
        return ANSWER.invalid_amount
    elseif read_state() == VOID then
        return ANSWER.code_void
    end
    local spent = read_used(campaign) - tonumber(amount[attempt])
    local left = campaign.face - spent
    if left < 0 then
        return ANSWER.insufficient_balance
    elseif left > AMOUNT_MAX or spent < -AMOUNT_MAX then
        return ANSWER.invalid_amount
    end
    set_used(campaign, spent)
    local event_id = add_event('adjusted', nil, campaign, tonumber(amount[attempt]), nil, ending)
    return ANSWER.adjusted .. ' ' .. event_id .. ' ' .. text(left)
end

local function main()
    return answer_each(adjust)
end
