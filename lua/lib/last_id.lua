-- The id of the last entry a stream ever had, trimmed or not; 0-0 without a stream.

local function parse_stream_id(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(seq)
end

local function read_last_id(stream_key)
    local info = redis.pcall('XINFO', 'STREAM', stream_key)
    if info.err then -- there is no stream; a key of another type raises here, before anything is written
        redis.call('XLEN', stream_key)
    end
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            return parse_stream_id(info[i + 1])
        end
    end
    return 0, 0
end
