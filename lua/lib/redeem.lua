-- Redeems the attempt's code.

-- @include lib/use

local REFUSAL_OF_STATE = { [REDEEMED] = 'already_redeemed', [HELD] = 'held_by_another_order 1', [VOID] = 'code_void' }

local function success(event_id, taken, left)
    return 'redeemed ' .. event_id .. ' ' .. text(taken) .. (left and ' ' .. text(left) or '')
end

-- A code that is held: by the attempt's own order, its redemption takes the hold's place.
local function redeem_held(campaign)
    local hold = find_hold(campaign)
    local refusal = not hold and REFUSAL_OF_STATE[HELD] or refusal_of_hold(hold)
    if refusal then
        return refusal
    elseif attempt.amount ~= '' and tonumber(attempt.amount) ~= hold.amount then
        return 'invalid_amount'
    end
    return success(confirm_hold(campaign, hold, hold.amount), hold.amount)
end

local function redeem()
    local campaign = read_campaign()
    local refusal = refusal_of_campaign(campaign)
    if refusal then
        return refusal
    end
    local state = read_state()
    if state == HELD then
        return redeem_held(campaign)
    elseif state ~= FRESH then
        return REFUSAL_OF_STATE[state]
    end
    local taken, left
    refusal, taken, left = decide_use(campaign)
    if refusal then
        return refusal
    end
    count_use(campaign, 1, taken or 0)
    if campaign.kind == 'single' then
        set_state(REDEEMED)
    end
    return success(add_event('redeemed', nil, campaign, taken), taken, left)
end
