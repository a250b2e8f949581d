#!lua
-- Undoes redemptions, completely or in part. The attempt's `amount` is the amount to give back; without one, all that is left.
-- The total given back is stored for each redemption, for ever, so a rollback has no age limit.
-- Answers, one for each attempt: `rolled_back <event id> <amount> <given back so far> <balance left>`, a refusal,
-- `in_use` as in void.lua, or `replayed <the first answer>`.

-- @include lib/answer_each
-- @include lib/add_event
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/description
-- @include lib/prepared
-- @include lib/usage

-- Returns a refusal; or nil, the amount to give back, and whether nothing is left of the redemption then.
local function decide_amount(campaign, redeemed_amount, given_back)
    if campaign.kind == 'balance' then
        local left = redeemed_amount - (given_back or 0)
        local asked = tonumber(amount[attempt]) or left
        if left <= 0 then
            return ANSWER.already_rolled_back
        elseif asked <= 0 then
            return ANSWER.invalid_amount
        elseif asked > left then
            return ANSWER.rollback_exceeds_redeemed
        end
        return nil, asked, asked == left
    elseif given_back then
        return ANSWER.already_rolled_back
    elseif amount[attempt] and tonumber(amount[attempt]) ~= redeemed_amount then
        local exceeds = tonumber(amount[attempt]) > (redeemed_amount or 0)
        return exceeds and ANSWER.rollback_exceeds_redeemed or ANSWER.invalid_amount
    end
    return nil, redeemed_amount, true
end

local function roll_back(ending, rolled_at, redemption, redeemed_amount, and_void)
    local campaign = read_campaign()
    redeemed_amount = tonumber(redeemed_amount)
    if not campaign.id then
        return ANSWER.unpublished
    end
    local given_back = slots(work.rolled_back, rolled_at)[redemption]
        or tonumber(redis.call('HGET', KEYS[rolled_at], redemption))
    local refusal, returned, whole = decide_amount(campaign, redeemed_amount, given_back)
    if refusal then
        return refusal
    end
    if campaign.kind == 'balance' and read_left(campaign) + returned > AMOUNT_MAX then
        return ANSWER.invalid_amount -- the balance was topped up since; more than AMOUNT_MAX cannot be stored
    end
    local state = read_state()
    if and_void == 1 and count_prepared() > 0 then
        return ANSWER.in_use
    end
    count_use(campaign, whole and -1 or 0, -(returned or 0))
    local total = (given_back or 0) + (returned or 0)
    slots(work.rolled_back, rolled_at)[redemption] = total
    if campaign.kind == 'single' and state == REDEEMED then
        set_state(FRESH)
    end
    local event_id = add_event('rolled_back', redemption, campaign, returned, nil, ending)
    if and_void == 1 and state ~= VOID then
        set_state(VOID)
        add_event('voided', range_of_code(), campaign, nil, nil, ending)
    end
    return ANSWER.rolled_back .. ' ' .. event_id .. ' ' .. text(returned) .. ' ' .. text(total)
        .. ' ' .. text(read_left(campaign))
end

local function main()
    return answer_each(roll_back)
end
