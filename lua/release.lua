#!lua
-- Ends holds, and gives back what they had taken: `event_type` is `released`, on request, or `expired`, of those
-- whose time is over; the traces of these are removed a day later. The attempt's fields are those of `hold_record`,
-- which the caller has read; where there was none it is empty, and so are they.
-- Answers, one for each attempt: `released <stream id>` and, on lines of their own, the hold's record; or as
-- confirm.lua.
local attempt_width = 22

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/holds

local function release(hold_id, hold_record, event_type)
    local record = read_hold_record(hold_id)
    if not record then
        return 'hold_not_found'
    elseif record ~= hold_record then
        return record == EXPIRED and 'hold_expired' or 'changed'
    elseif record == EXPIRED then
        local removed_at_ms = redis.call('ZSCORE', expiry_key, hold_id)
        if event_type == 'expired' and removed_at_ms and now_ms >= tonumber(removed_at_ms) then
            pending.holds[hold_id], pending.expiries[hold_id] = REMOVED, REMOVED
        end
        return 'hold_expired'
    end
    local hold, campaign = parse_hold(hold_id, record), read_campaign()
    local is_over = now_ms >= hold.expires_at_ms
    if not campaign.id then
        return 'unpublished'
    elseif event_type == 'expired' and not is_over then
        return 'changed'
    elseif event_type == 'released' and is_over then
        return 'hold_expired'
    end
    count_use(campaign, -1, -(hold.amount or 0))
    if campaign.kind == 'single' and read_state() == HELD then
        set_state(FRESH)
    end
    if is_over then
        keep_expired(campaign, hold_id)
    else
        remove_hold(campaign, hold_id)
    end
    return 'released ' .. add_event(event_type, shard .. '-' .. hold_id, campaign, hold.amount) .. '\n' .. record
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local hold_id, hold_record, event_type = unpack(fields, at + 19, at + 21)
    local answer = read_receipt()
    if not answer then
        answer = release(hold_id, hold_record, event_type)
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
