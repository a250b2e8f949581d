-- Adds an event about the attempt's code to the unit of work.

-- @include lib/event_call
-- @include lib/text
-- @include lib/unit_of_work

-- Returns the event's id. If `redemption` is nil, the event is itself a redemption or a hold, and its id is used. `hold_id` is
-- the stream id of the hold that the event renews or ends. `metadata` is the last field of the entry; empty or nil for none.
local function add_event(type, redemption, campaign, event_amount, hold_id, metadata)
    local event_at = text(event_ms)
    local event_id = event_at .. '-' .. string.format('%.0f', event_seq)
    event_seq = event_seq + 1
    redemption = redemption or shard .. '-' .. event_id
    local hold = hold_id and shard .. '-' .. hold_id or type == 'held' and redemption or ''
    local call = event_call(
        events_key, event_id, type, redemption, hold, campaign.id,
        attempt.batch, attempt.serial, attempt.last4, attempt.user, text(event_amount), campaign.currency,
        attempt.order, attempt.key, attempt.actor, event_at
    )
    if metadata and metadata ~= '' then
        call[#call + 1], call[#call + 2] = 'metadata', metadata
    end
    work.events[#work.events + 1] = call
    return event_id
end
