-- Appends all events of a call to the stream, as one entry. Their ids are consecutive, and the entry has the id of the last
-- event: so XREAD after the id of any event finds what follows it.

local function append_events(stream_key, last_event_id, lines)
    redis.call('XADD', stream_key, last_event_id, 'v', '2', 'events', table.concat(lines, '\n'))
end
