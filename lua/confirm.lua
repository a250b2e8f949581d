#!lua
-- Turns holds into redemptions. With `decided` 1 nothing but the hold itself matters any more: it is one of several
-- that are confirmed together. The attempt's fields are those of `hold_record`, which the caller has read;
-- where there was none it is empty, and so are they.
-- Answers, one for each attempt: `redeemed <stream id> <amount> <balance left>` and, on lines of
-- their own, the hold's record; a refusal's code; `replayed <the first answer>`; or, of which no receipt is kept,
-- `changed`: the record is another now.
local attempt_width = 22

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/holds

-- Why a hold that is there cannot be confirmed.
local function refusal_of(hold, campaign)
    if now_ms >= hold.expires_at_ms then
        return 'hold_expired'
    elseif campaign.state == 'paused' then
        return 'campaign_inactive'
    elseif read_state() == VOID then
        return 'code_void'
    end
    return nil
end

local function confirm(hold_id, hold_record, decided)
    local record = read_hold_record(hold_id)
    if not record then
        return 'hold_not_found'
    elseif record == EXPIRED then
        return 'hold_expired'
    elseif record ~= hold_record then
        return 'changed'
    end
    local hold, campaign = parse_hold(hold_id, record), read_campaign()
    local taken = attempt.amount == '' and hold.amount or tonumber(attempt.amount)
    local refusal = not campaign.id and 'unpublished' or not decided and refusal_of(hold, campaign)
    if refusal then
        return refusal
    elseif taken ~= hold.amount and (campaign.kind ~= 'balance' or taken <= 0 or taken > hold.amount) then
        return 'invalid_amount'
    end
    local event_id, left = confirm_hold(campaign, hold, taken)
    return 'redeemed ' .. event_id .. ' ' .. text(taken) .. ' ' .. text(left) .. '\n' .. record
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local hold_id, hold_record, decided = unpack(fields, at + 19, at + 21)
    local answer = read_receipt()
    if not answer then
        answer = confirm(hold_id, hold_record, decided == 1)
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
