-- Adds an event about the attempt's code to the unit of work.

-- @include lib/event_call
-- @include lib/text
-- @include lib/unit_of_work

-- Returns the event's id. If `redemption` is nil, the event is itself a redemption or a hold, and its id is used. `hold_id` is
-- the stream id of the hold that the event renews or ends.
local function add_event(type, redemption, campaign, event_amount, hold_id)
    local event_at = text(event_ms)
    local event_id = event_at .. '-' .. string.format('%.0f', event_seq)
    event_seq = event_seq + 1
    redemption = redemption or shard .. '-' .. event_id
    local hold = hold_id and shard .. '-' .. hold_id or type == 'held' and redemption or ''
    work.events[#work.events + 1] = event_call(
        events_key, event_id, type, redemption, hold, campaign.id,
        attempt.batch, attempt.serial, attempt.last4, attempt.user, text(event_amount), campaign.currency,
        attempt.order, attempt.key, attempt.actor, event_at
    )
    return event_id
end
