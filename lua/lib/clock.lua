-- The clock of a script call: Redis TIME for time windows, and the id of the next event. The id never goes backwards, even
-- if the clock does.

-- @include lib/last_id

local function read_clock(stream_key)
    local time = redis.call('TIME')
    local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    local last_ms, last_seq = read_last_id(stream_key)
    if last_ms >= now_ms then
        return now_ms, last_ms, last_seq + 1
    end
    return now_ms, now_ms, 0
end
