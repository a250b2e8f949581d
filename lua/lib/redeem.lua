-- Redeems the attempt's code.

-- @include lib/refusal_of_campaign
-- @include lib/refusal_of_hold
-- @include lib/decide_use
-- @include lib/confirm_hold

-- The refusal of a code in this state. The order that holds the code does not matter here.
local function refusal_of_state(state)
    if state == REDEEMED then
        return ANSWER.already_redeemed
    elseif state == HELD then
        return ANSWER.held_by_another_order .. ' 1'
    end
    return ANSWER.code_void
end

local function answer_redeemed(event_id, taken, left)
    return ANSWER.redeemed .. ' ' .. event_id .. ' ' .. text(taken) .. (left and ' ' .. text(left) or '')
end

-- If the attempt's own order holds the code, the redemption uses up that hold.
local function decide_held(campaign)
    local hold = find_hold(campaign)
    local refusal = not hold and refusal_of_state(HELD) or refusal_of_hold(hold)
    if refusal then
        return refusal
    elseif amount[attempt] and tonumber(amount[attempt]) ~= hold.amount then
        return ANSWER.invalid_amount
    end
    return nil, hold.amount, nil, hold
end

-- Returns a refusal; or nil, the amount taken, the balance left, and the hold that is used up. It counts nothing.
local function decide_redemption(campaign)
    local refusal = refusal_of_campaign(campaign)
    if refusal then
        return refusal
    end
    local state = read_state()
    if state == HELD then
        return decide_held(campaign)
    elseif state ~= FRESH then
        return refusal_of_state(state)
    end
    return decide_use(campaign)
end

local function redeem(ending)
    local campaign = read_campaign()
    local refusal, taken, left, hold = decide_redemption(campaign)
    if refusal then
        return refusal
    elseif hold then
        return answer_redeemed(confirm_hold(campaign, hold, taken, ending), taken)
    end
    count_use(campaign, 1, taken or 0)
    if campaign.kind == 'single' then
        set_state(REDEEMED)
    end
    return answer_redeemed(add_event('redeemed', nil, campaign, taken, nil, ending), taken, left)
end
