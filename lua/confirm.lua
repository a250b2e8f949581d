#!lua
-- Turns holds into redemptions. `hold_record` is the hold's record as the caller has read it; the attempt's fields come from
-- it. If there was no record, it is empty, and so are the fields.
-- Answers, one for each attempt: `redeemed <event id> <amount> <balance left>` and, on the following lines, the hold's
-- record; a refusal; `replayed <the first answer>`; or `stale_hold`, if the record has changed since the caller read it.

-- @include lib/answer_each
-- @include lib/campaign
-- @include lib/confirm_hold

-- The refusal of a hold that exists, or nil if it can be confirmed.
local function refusal_of(hold, campaign)
    if now_ms >= hold.expires_at_ms then
        return ANSWER.hold_expired
    elseif campaign.state == 'paused' then
        return ANSWER.campaign_inactive
    elseif read_state() == VOID then
        return ANSWER.code_void
    end
    return nil
end

local function confirm(ending, hold_id, hold_record)
    local record = read_hold_record(hold_id)
    if not record then
        return ANSWER.hold_not_found
    elseif record == EXPIRED then
        return ANSWER.hold_expired
    elseif record ~= hold_record then
        return ANSWER.stale_hold
    end
    local hold, campaign = parse_hold(hold_id, record), read_campaign()
    local taken = tonumber(amount[attempt]) or hold.amount
    local refusal = not campaign.id and ANSWER.unpublished or refusal_of(hold, campaign)
    if refusal then
        return refusal
    elseif taken ~= hold.amount and (campaign.kind ~= 'balance' or taken <= 0 or taken > hold.amount) then
        return ANSWER.invalid_amount
    end
    local event_id, left = confirm_hold(campaign, hold, taken, ending)
    return ANSWER.redeemed .. ' ' .. event_id .. ' ' .. text(taken) .. ' ' .. text(left) .. '\n' .. record
end

local function main()
    return answer_each(confirm)
end
