#!lua
-- Updates the configuration of a shard from version `base`, or a later one, to version `target`. This takes one call, or
-- several; then only the last one sets the version. Each row has the version of its last change and never replaces a later
-- one, so two publishers may run at once.
-- Answers {'published'}. Or it does nothing, and answers {'current'}: the shard has this version already; {'gap'}: the shard
-- is below `base`, so rows would be missing; {'behind'}: the shard is being rebuilt, or its stream ends before the ledger
-- does. In the last case the shard has lost data, and with a configuration its redeemed codes could be redeemed again.

-- After the arguments that `main` names, these follow:
--   `records` times: version, field, record, event. They go to KEYS[4], the control hash, and KEYS[5], its index of versions.
--   The event is JSON, or empty for none; `about` and `cause` in it are as in lib/event_line. Only the call that writes the
--   record adds the event to the stream.
--   Then, up to the end, campaigns: each has its position in KEYS and its fields.
local FIRST_RECORD, RECORD_WIDTH = 6, 4
local SHARD = '0' -- records, and so their events, are on no other shard
local CAMPAIGN_FIELDS = {
    'version', 'id', 'state', 'kind', 'starts_at_ms', 'ends_at_ms', 'max_uses', 'stock', 'per_user_limit', 'budget',
    'amount', 'currency',
}

-- @include lib/clock
-- @include lib/append_events
-- @include lib/event_line

local function stream_ends_before(events_key, offset)
    local last_ms, last_seq = read_last_id(events_key)
    local offset_ms, offset_seq = parse_stream_id(offset)
    return last_ms < offset_ms or (last_ms == offset_ms and last_seq < offset_seq)
end

local function main()
    local version_key, events_key, rebuilding_key = KEYS[1], KEYS[2], KEYS[3]
    local base, target, ledger_offset, last, records = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

    local shard_version = tonumber(redis.call('GET', version_key) or 0)
    if shard_version >= tonumber(target) then
        return { ANSWER.current }
    elseif shard_version < tonumber(base) then
        return { ANSWER.gap }
    elseif redis.call('EXISTS', rebuilding_key) == 1 or stream_ends_before(events_key, ledger_offset) then
        return { ANSWER.behind }
    end
    local control_key, changed_key = KEYS[4], KEYS[5]
    local first_campaign = FIRST_RECORD + tonumber(records) * RECORD_WIDTH

    -- Read which rows are new to this shard.
    local record_news, event_news, campaign_news = {}, {}, {}
    for at = FIRST_RECORD, first_campaign - 1, RECORD_WIDTH do
        local version, field, record, event = unpack(ARGV, at, at + RECORD_WIDTH - 1)
        if tonumber(redis.call('ZSCORE', changed_key, field) or 0) < tonumber(version) then
            record_news[#record_news + 1] = { version, field, record }
            if event ~= '' then
                event_news[#event_news + 1] = cjson.decode(event)
            end
        end
    end
    for at = first_campaign, #ARGV, #CAMPAIGN_FIELDS + 1 do
        local campaign_key, version = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
        if tonumber(redis.call('HGET', campaign_key, 'version') or 0) < tonumber(version) then
            local row = {}
            for i, field in ipairs(CAMPAIGN_FIELDS) do
                row[2 * i - 1], row[2 * i] = field, ARGV[at + i]
            end
            campaign_news[campaign_key] = row
        end
    end
    local _, event_ms, event_seq = read_clock(events_key)

    -- Write. A campaign's counters are in the same hash, so its fields are set and the hash is never deleted.
    for _, news in ipairs(record_news) do
        redis.call('HSET', control_key, news[2], news[3])
        redis.call('ZADD', changed_key, news[1], news[2])
    end
    local event_at, lines, last_event_id = string.format('%.0f', event_ms), {}, nil
    for _, event in ipairs(event_news) do
        last_event_id = event_at .. '-' .. string.format('%.0f', event_seq)
        event_seq = event_seq + 1
        lines[#lines + 1] = event_line(
            event.type, SHARD .. '-' .. last_event_id, event.redemption, nil, event.campaign, event.about, nil, nil, event.cause,
            event_at
        )
    end
    if last_event_id then
        append_events(events_key, last_event_id, lines)
    end
    for campaign_key, row in pairs(campaign_news) do
        redis.call('HSET', campaign_key, unpack(row))
    end
    if last == '1' then
        redis.call('SET', version_key, target)
    end
    return { ANSWER.published }
end
