-- Writes the unit of work: everything that this call has decided.

-- @include lib/append_events
-- @include lib/text
-- @include lib/unit_of_work

local CALL_ARGUMENTS_MAX = 1000

-- A key of another type raises here, before anything is written.
local function check_holds()
    if next(work.holds) ~= nil or next(work.held) ~= nil then
        redis.call('HLEN', holds_key)
        redis.call('HLEN', held_key)
        redis.call('ZCARD', expiry_key)
    end
end

local function write_holds()
    for id, record in pairs(work.holds) do
        if record == REMOVED then
            redis.call('HDEL', holds_key, id)
        else
            redis.call('HSET', holds_key, id, record)
        end
    end
    for id, at_ms in pairs(work.expiries) do
        if at_ms == REMOVED then
            redis.call('ZREM', expiry_key, id)
        else
            redis.call('ZADD', expiry_key, text(at_ms), id)
        end
    end
    for field, id in pairs(work.held) do
        if id == REMOVED then
            redis.call('HDEL', held_key, field)
        else
            redis.call('HSET', held_key, field, id)
        end
    end
end

-- Sets all states of one string, in several calls if there are many: Lua can unpack only a limited number of arguments.
local function write_states(at, offsets)
    local call = { 'BITFIELD', KEYS[at] }
    for position, state in pairs(offsets) do
        if #call >= CALL_ARGUMENTS_MAX then
            redis.call(unpack(call))
            call = { 'BITFIELD', KEYS[at] }
        end
        local size = #call
        call[size + 1], call[size + 2], call[size + 3], call[size + 4] = 'SET', 'u2', 2 * position, state
    end
    redis.call(unpack(call))
end

-- Every key below was read in this call, so no write can fail because of a key's type. The events are first: if somebody else
-- has deleted the newest entry of the stream, their ids may be too small, and then nothing at all is written.
local function write_work()
    check_holds()
    if #work.events > 0 then
        local last_event_id = text(event_ms) .. '-' .. text(event_seq - 1)
        append_events(events_key, last_event_id, work.events)
    end
    write_holds()
    for at, campaign in pairs(work.campaigns) do
        if campaign.added ~= 0 then
            redis.call('HINCRBY', KEYS[at], 'uses', campaign.added)
        end
        if campaign.added_amount ~= 0 then
            redis.call('HINCRBY', KEYS[at], 'spent', text(campaign.added_amount))
        end
    end
    for at, values in pairs(work.used) do
        for field, value in pairs(values) do
            if work.used_kind[at] == 'multi' then
                redis.call('HSET', KEYS[at], field, text(value))
            else
                redis.call('BITFIELD', KEYS[at], 'SET', 'i64', '#' .. field, text(value))
            end
        end
    end
    for at, offsets in pairs(work.states) do
        write_states(at, offsets)
    end
    for at, counts in pairs(work.users) do
        for digest, count in pairs(counts) do
            if count == 0 then
                redis.call('HDEL', KEYS[at], digest)
            else
                redis.call('HSET', KEYS[at], digest, count)
            end
        end
    end
    for at, amounts in pairs(work.rolled_back) do
        for redemption, given_back in pairs(amounts) do
            redis.call('HSET', KEYS[at], redemption, text(given_back))
        end
    end
    local expires_at_s = text((epoch_now + 2) * tonumber(idempotency_window_s))
    for at, decided in pairs(work.idempotency) do
        for digest, record in pairs(decided) do
            redis.call('HSET', KEYS[at], digest, record)
            redis.call('EXPIREAT', KEYS[at], expires_at_s, 'NX')
        end
    end
end
