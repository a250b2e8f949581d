-- Holds the attempt's code, or part of its balance, for an order. If the order holds the code already, its hold is renewed.

-- @include lib/add_event
-- @include lib/code_state
-- @include lib/decide_use
-- @include lib/holds
-- @include lib/refusal_of_campaign
-- @include lib/refusal_of_hold

local function answer_held(id, hold_amount, expires_at_ms, left)
    return ANSWER.held .. ' ' .. id .. ' ' .. text(hold_amount) .. ' ' .. text(expires_at_ms)
        .. (left and ' ' .. text(left) or '')
end

-- A hold on a balance may be renewed with another amount: the old amount is given back first.
local function renew(campaign, hold, expires_at_ms, ending)
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
    elseif amount[attempt] and tonumber(amount[attempt]) ~= hold.amount then
        return ANSWER.invalid_amount
    end
    keep_hold(campaign, hold.id, expires_at_ms, taken)
    add_event('held', shard .. '-' .. hold.id, campaign, taken, nil, ending)
    return answer_held(hold.id, taken, expires_at_ms, left)
end

local function hold_code(ending, ttl_ms)
    local campaign = read_campaign()
    local refusal = refusal_of_campaign(campaign)
    if refusal then
        return refusal
    end
    local state, expires_at_ms = read_state(), now_ms + ttl_ms
    if state == VOID then
        return ANSWER.code_void
    elseif state == REDEEMED then
        return ANSWER.already_redeemed
    end
    local hold = find_hold(campaign)
    if hold then
        return refusal_of_hold(hold) or renew(campaign, hold, expires_at_ms, ending)
    elseif state == HELD then -- prepared for a combined order (lib/prepared.lua)
        return ANSWER.held_by_another_order .. ' 1'
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
    local id = add_event('held', nil, campaign, taken, nil, ending)
    keep_hold(campaign, id, expires_at_ms, taken)
    return answer_held(id, taken, expires_at_ms, left)
end
