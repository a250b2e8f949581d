#!lua
-- Brings the configuration of a shard from version `base`, or a later one, up to `target`: in one
-- call, or in several of which only the last moves the version. Each row carries the version it
-- changed at and never replaces a later one, so publishers may overtake each other.
-- Answers {'published'}; or, with nothing done, {'current'}: the shard is there already; {'gap'}: it is below `base`, so
-- rows would be missing; {'behind'}: it is being rebuilt, or its stream ends before the ledger does. Then it has lost
-- data, and a configuration would make redeemed codes fresh again.
local version_key, events_key, rebuilding_key = KEYS[1], KEYS[2], KEYS[3]
local base, target, ledger_offset, last, records = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- `records` times a version, a field, a record and an event follow, for KEYS[4], the control hash, and KEYS[5],
-- its index of versions; then, up to the end, campaigns: each its position in KEYS and its fields. The event is JSON, or
-- empty for none; the call that takes the record over adds it to the stream, once.
local first_record, record_width = 6, 4
local CAMPAIGN_FIELDS = {
    'version', 'id', 'state', 'kind', 'starts_at_ms', 'ends_at_ms', 'max_uses', 'stock', 'per_user_limit', 'budget',
    'amount', 'currency',
}

-- @include lib/clock
-- @include lib/event_call

local function stream_ends_before(offset)
    local last_ms, last_seq = read_last_id(events_key)
    local offset_ms, offset_seq = parse_stream_id(offset)
    return last_ms < offset_ms or (last_ms == offset_ms and last_seq < offset_seq)
end

local shard_version = tonumber(redis.call('GET', version_key) or 0)
if shard_version >= tonumber(target) then
    return { ANSWER.current }
elseif shard_version < tonumber(base) then
    return { ANSWER.gap }
elseif redis.call('EXISTS', rebuilding_key) == 1 or stream_ends_before(ledger_offset) then
    return { ANSWER.behind }
end
local control_key, changed_key = KEYS[4], KEYS[5]
local first_campaign = first_record + tonumber(records) * record_width

-- Read: which rows are new to this shard.
local record_news, event_news, campaign_news = {}, {}, {}
for at = first_record, first_campaign - 1, record_width do
    local version, field, record, event = unpack(ARGV, at, at + record_width - 1)
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

-- Write. A campaign's counters are in the same hash: its fields are set, never deleted.
for _, news in ipairs(record_news) do
    redis.call('HSET', control_key, news[2], news[3])
    redis.call('ZADD', changed_key, news[1], news[2])
end
for _, event in ipairs(event_news) do
    redis.call(unpack(event_call(
        events_key, string.format('%.0f-%.0f', event_ms, event_seq), event.type, event.redemption, event.campaign,
        event.batch, event.serial, '', '', '', '', '', event.key, event.actor, string.format('%.0f', event_ms)
    )))
    event_seq = event_seq + 1
end
for campaign_key, row in pairs(campaign_news) do
    redis.call('HSET', campaign_key, unpack(row))
end
if last == '1' then
    redis.call('SET', version_key, target)
end
return { ANSWER.published }
