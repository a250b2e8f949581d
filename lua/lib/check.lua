-- Says how a redemption of the attempt's code would be answered.

-- @include lib/redeem

local STATE_NAMES = { [FRESH] = 'fresh', [REDEEMED] = 'redeemed', [HELD] = 'held', [VOID] = 'void' }

local function refusal_of_redemption(campaign, state)
    local refusal = refusal_of_campaign(campaign)
    if not refusal and state == HELD then
        local hold = find_hold(campaign)
        return hold and refusal_of_hold(hold) or refusal_of_state(HELD)
    elseif not refusal and state ~= FRESH then
        return refusal_of_state(state)
    elseif not refusal then
        refusal = decide_use(campaign)
    end
    return refusal
end

local function check()
    local campaign = read_campaign()
    local state = read_state()
    return table.concat({
        refusal_of_redemption(campaign, state) or ANSWER.redeemable,
        campaign.state or '', STATE_NAMES[state], text(read_used(campaign)),
        text(campaign.starts_at_ms), text(campaign.ends_at_ms), text(campaign.max_uses),
    }, '\n')
end
