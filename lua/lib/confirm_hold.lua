-- Turns a hold into a redemption of the amount `taken`. If the hold has a larger amount, the rest is given back.

-- @include lib/add_event
-- @include lib/code_state
-- @include lib/holds
-- @include lib/usage

-- Returns the event's id, and the balance left.
local function confirm_hold(campaign, hold, taken, ending)
    if campaign.kind == 'single' then
        set_state(REDEEMED)
    end
    if hold.amount and taken ~= hold.amount then
        count_use(campaign, 0, taken - hold.amount)
    end
    remove_hold(campaign, hold.id)
    return add_event('confirmed', nil, campaign, taken, hold.id, ending), read_left(campaign)
end
