#!lua flags=no-writes
-- Tells what a redemption would be answered, and changes nothing.
-- Answers, one for each attempt: its answer, as redeem.lua's or `redeemable`; and, a line each, the
-- campaign's state, the code's (fresh, redeemed, held, void), how often or how much of it was used, and
-- its campaign's starts_at_ms, ends_at_ms and max_uses.
local attempt_width = 19

-- @include lib/preamble
-- @include lib/redeem

local STATE_NAMES = { [FRESH] = 'fresh', [REDEEMED] = 'redeemed', [HELD] = 'held', [VOID] = 'void' }

local function check(campaign, state)
    local refusal = refusal_of_campaign(campaign)
    if not refusal and state == HELD then
        local hold = find_hold(campaign)
        refusal = hold and refusal_of_hold(hold) or REFUSAL_OF_STATE[HELD]
    elseif not refusal and state ~= FRESH then
        refusal = REFUSAL_OF_STATE[state]
    elseif not refusal then
        refusal = decide_use(campaign)
    end
    return refusal or 'redeemable'
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local campaign = read_campaign()
    local state = read_state()
    answers[#answers + 1] = table.concat({
        check(campaign, state), campaign.state or '', STATE_NAMES[state], text(read_used(campaign)),
        text(campaign.starts_at_ms), text(campaign.ends_at_ms), text(campaign.max_uses),
    }, '\n')
end
return answers
