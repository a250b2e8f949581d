-- The one clock of a script call: Redis TIME for windows, and the id of the next event,
-- which never goes backwards even where the clock does.

local function read_clock(stream_key)
    local time = redis.call('TIME')
    local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    local event_ms, event_seq = now_ms, 0
    local info = redis.pcall('XINFO', 'STREAM', stream_key)
    if not info.err then
        for i = 1, #info, 2 do
            if info[i] == 'last-generated-id' then
                local last_ms, last_seq = string.match(info[i + 1], '^(%d+)-(%d+)$')
                last_ms, last_seq = tonumber(last_ms), tonumber(last_seq)
                if last_ms >= now_ms then
                    event_ms, event_seq = last_ms, last_seq + 1
                end
                break
            end
        end
    end
    return now_ms, event_ms, event_seq
end
