#!lua
-- Ends holds, and gives back what they have taken. `event_type` is `released` if a client asks for it, or `expired` if the
-- hold's time is over. An expired hold leaves a mark, which is removed a day later. `hold_record` is the hold's record as the
-- caller has read it; the attempt's fields come from it. If there was no record, it is empty, and so are the fields.
-- Answers, one for each attempt: `released <event id>` and, on the following lines, the hold's record; other answers as in
-- confirm.lua.

-- @include lib/answer_each
-- @include lib/add_event
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/holds
-- @include lib/usage

local function release(ending, hold_id, hold_record, event_type)
    local record = read_hold_record(hold_id)
    if not record then
        return ANSWER.hold_not_found
    elseif record ~= hold_record then
        return record == EXPIRED and ANSWER.hold_expired or ANSWER.stale_hold
    elseif record == EXPIRED then
        local removed_at_ms = redis.call('ZSCORE', expiry_key, hold_id)
        if event_type == 'expired' and removed_at_ms and now_ms >= tonumber(removed_at_ms) then
            work.holds[hold_id], work.expiries[hold_id] = REMOVED, REMOVED
        end
        return ANSWER.hold_expired
    end
    local hold, campaign = parse_hold(hold_id, record), read_campaign()
    local is_over = now_ms >= hold.expires_at_ms
    if not campaign.id then
        return ANSWER.unpublished
    elseif event_type == 'expired' and not is_over then
        return ANSWER.stale_hold
    elseif event_type == 'released' and is_over then
        return ANSWER.hold_expired
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
    local event_id = add_event(event_type, shard .. '-' .. hold_id, campaign, hold.amount, hold_id, ending)
    return ANSWER.released .. ' ' .. event_id .. '\n' .. record
end

local function main()
    return answer_each(release)
end
