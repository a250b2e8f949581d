-- The clock of a script call: Redis TIME for time windows, and the id of the next event. The id never goes backwards, even
-- if the clock does.

-- @include lib/last_id

-- Whether the stream has no entry of this millisecond or later. XINFO, which also knows of entries that were trimmed, costs
-- more: it sends two whole entries.
local function is_older(stream_key, now_ms)
    local before_now = string.format('%.0f-18446744073709551615', now_ms - 1)
    return redis.call('XLEN', stream_key) > 0 and not redis.call('XREAD', 'COUNT', 1, 'STREAMS', stream_key, before_now)
end

local function read_clock(stream_key)
    local time = redis.call('TIME')
    local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    if is_older(stream_key, now_ms) then
        return now_ms, now_ms, 0
    end
    local last_ms, last_seq = read_last_id(stream_key)
    if last_ms >= now_ms then
        return now_ms, last_ms, last_seq + 1
    end
    return now_ms, now_ms, 0
end
