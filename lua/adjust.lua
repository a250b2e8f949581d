#!lua
-- Tops up balances, or corrects them: the attempt's `amount` may be negative.
-- Answers, one for each attempt: `adjusted <stream id> <balance left>`, a refusal's code, or
-- `replayed <the first answer>`.
local attempt_width = 19

-- @include lib/preamble
-- @include lib/idempotency

local function adjust()
    local campaign = read_campaign()
    if not campaign.id then
        return 'unpublished'
    elseif campaign.kind ~= 'balance' then
        return 'invalid_amount'
    elseif read_state() == VOID then
        return 'code_void'
    end
    local spent = read_used(campaign) - tonumber(attempt.amount)
    local left = tonumber(campaign.amount) - spent
    if left < 0 then
        return 'insufficient_balance'
    elseif left > AMOUNT_MAX or spent < -AMOUNT_MAX then
        return 'invalid_amount'
    end
    set_used(campaign, spent)
    return 'adjusted ' .. add_event('adjusted', nil, campaign, tonumber(attempt.amount)) .. ' ' .. text(left)
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local answer = read_receipt()
    if not answer then
        answer = adjust()
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
