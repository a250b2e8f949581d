-- Adds an event about the attempt's code to the unit of work.

-- @include lib/event_line
-- @include lib/text
-- @include lib/unit_of_work

-- Returns the event's id. If `redemption` is nil, the event is itself a redemption or a hold, and its id is used. `hold_id` is
-- the stream id of the hold that the event renews or ends. `ending` is as in lib/event_line.
local function add_event(type, redemption, campaign, event_amount, hold_id, ending)
    local event_at = text(event_ms)
    local stream_id = event_at .. '-' .. text(event_seq)
    local id = shard .. '-' .. stream_id
    event_seq = event_seq + 1
    redemption = redemption or id
    local hold = hold_id and shard .. '-' .. hold_id or type == 'held' and redemption
    work.events[#work.events + 1] = event_line(
        type, id, redemption, hold, campaign.id, about[attempt], event_amount and text(event_amount), campaign.currency,
        cause[attempt], event_at, ending
    )
    return stream_id
end
