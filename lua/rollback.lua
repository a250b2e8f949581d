#!lua
-- Undoes redemptions, whole or in part. What was given back of each is kept under its id, for ever:
-- there is no age limit. The attempt's `amount` is what to give back, empty for all that is left.
-- Answers, one for each attempt: `rolled_back <stream id> <amount> <given back so far> <balance left>`, or a
-- refusal's code, or `replayed <the first answer>`.
local attempt_width = 23

-- @include lib/preamble
-- @include lib/idempotency

-- How much to give back, and whether that is all of it; or a refusal.
local function decide(campaign, redeemed_amount, given_back)
    if campaign.kind == 'balance' then
        local left = redeemed_amount - (given_back or 0)
        local asked = attempt.amount == '' and left or tonumber(attempt.amount)
        if left <= 0 then
            return 'already_rolled_back'
        elseif asked <= 0 then
            return 'invalid_amount'
        elseif asked > left then
            return 'rollback_exceeds_redeemed'
        end
        return nil, asked, asked == left
    elseif given_back then
        return 'already_rolled_back'
    elseif attempt.amount ~= '' and tonumber(attempt.amount) ~= redeemed_amount then
        return tonumber(attempt.amount) > (redeemed_amount or 0) and 'rollback_exceeds_redeemed' or 'invalid_amount'
    end
    return nil, redeemed_amount, true
end

local function roll_back(rolled_at, redemption, redeemed_amount, and_void)
    local campaign = read_campaign()
    if not campaign.id then
        return 'unpublished'
    end
    local given_back = slots(pending.rolled_back, rolled_at)[redemption]
        or tonumber(redis.call('HGET', KEYS[rolled_at], redemption))
    local refusal, returned, whole = decide(campaign, redeemed_amount, given_back)
    if refusal then
        return refusal
    end
    if campaign.kind == 'balance' and read_left(campaign) + returned > AMOUNT_MAX then
        return 'invalid_amount' -- it was topped up since, to more than can be told
    end
    local state = read_state()
    count_use(campaign, whole and -1 or 0, -(returned or 0))
    local total = (given_back or 0) + (returned or 0)
    slots(pending.rolled_back, rolled_at)[redemption] = total
    if campaign.kind == 'single' and state == REDEEMED then
        set_state(FRESH)
    end
    local event_id = add_event('rolled_back', redemption, campaign, returned)
    if and_void and state ~= VOID then
        set_state(VOID)
        add_event('voided', attempt.serial .. '-' .. attempt.serial, campaign)
    end
    return 'rolled_back ' .. event_id .. ' ' .. text(returned) .. ' ' .. text(total) .. ' ' .. text(read_left(campaign))
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local rolled_at, redemption, redeemed_amount, and_void = unpack(fields, at + 19, at + 22)
    local answer = read_receipt()
    if not answer then
        answer = roll_back(rolled_at, redemption, tonumber(redeemed_amount), and_void == 1)
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
