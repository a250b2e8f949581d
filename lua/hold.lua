#!lua
-- Holds codes, or parts of balances, for orders. An order that asks again renews its own hold.
-- Answers, one for each attempt: `held <hold's stream id> <amount> <expires at, ms>`, and of a code that
-- holds an amount ` <balance left>`; else as redeem.lua.
local attempt_width = 20

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/use

local function answer_held(id, hold_amount, expires_at_ms, left)
    return 'held ' .. id .. ' ' .. text(hold_amount) .. ' ' .. text(expires_at_ms) .. (left and ' ' .. text(left) or '')
end

-- Another amount of a balance: as if the old part were given back first.
local function renew(campaign, hold, expires_at_ms)
    local taken, left = hold.amount, nil
    if campaign.kind == 'balance' then
        local refusal
        count_use(campaign, -1, -hold.amount)
        refusal, taken, left = decide_use(campaign)
        if refusal then
            count_use(campaign, 1, hold.amount)
            return refusal
        end
        count_use(campaign, 1, taken)
    elseif attempt.amount ~= '' and tonumber(attempt.amount) ~= hold.amount then
        return 'invalid_amount'
    end
    keep_hold(campaign, hold.id, expires_at_ms, taken)
    add_event('held', shard .. '-' .. hold.id, campaign, taken)
    return answer_held(hold.id, taken, expires_at_ms, left)
end

local function hold_code(ttl_ms)
    local campaign = read_campaign()
    local refusal = refusal_of_campaign(campaign)
    if refusal then
        return refusal
    end
    local state, expires_at_ms = read_state(), now_ms + ttl_ms
    if state == VOID then
        return 'code_void'
    elseif state == REDEEMED then
        return 'already_redeemed'
    end
    local hold = find_hold(campaign)
    if hold then
        return refusal_of_hold(hold) or renew(campaign, hold, expires_at_ms)
    end
    local taken, left
    refusal, taken, left = decide_use(campaign)
    if refusal then
        return refusal
    end
    count_use(campaign, 1, taken or 0)
    if campaign.kind == 'single' then
        set_state(HELD)
    end
    local id = add_event('held', nil, campaign, taken)
    keep_hold(campaign, id, expires_at_ms, taken)
    return answer_held(id, taken, expires_at_ms, left)
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local ttl_ms = unpack(fields, at + 19, at + 19)
    local answer = read_receipt()
    if not answer then
        answer = hold_code(ttl_ms)
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
