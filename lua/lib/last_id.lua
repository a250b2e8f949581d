-- Reads the id of the last entry that was ever added to a stream, even if it was trimmed; 0-0 if there is no stream.

local function parse_stream_id(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(seq)
end

local function read_last_id(stream_key)
    local info = redis.pcall('XINFO', 'STREAM', stream_key)
    if info.err then -- there is no stream, or the key has another type: then XLEN raises, before anything is written
        redis.call('XLEN', stream_key)
    end
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            return parse_stream_id(info[i + 1])
        end
    end
    return 0, 0
end
