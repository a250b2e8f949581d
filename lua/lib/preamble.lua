-- The beginning of every script about codes: binds the keys and arguments that all of them take, and checks the call.
-- If a check fails, nothing is done, and the reply to the whole call is {'unpublished'}: this shard has no configuration;
-- {'stale'}: this shard has a later configuration than the caller; or {'epoch', n}: idempotency records now belong to epoch n.
-- `packed` is one MessagePack array with the columns of lib/attempt: one argument for each field would cost more on both
-- sides. A successful call replies {'ok', answer…}, with one answer for each attempt.

-- @include lib/clock

local events_key, version_key, holds_key, expiry_key, held_key
local shard, version, idempotency_epoch, idempotency_window_s, packed
local columns
local shard_version, now_ms, event_ms, event_seq, epoch_now

each_call(function()
    events_key, version_key, holds_key, expiry_key, held_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
    shard, version, idempotency_epoch, idempotency_window_s, packed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
    columns = cmsgpack.unpack(packed)
    shard_version = redis.call('GET', version_key)
    if not shard_version then
        return { ANSWER.unpublished }
    elseif tonumber(shard_version) > tonumber(version) then
        return { ANSWER.stale }
    end
    now_ms, event_ms, event_seq = read_clock(events_key)
    epoch_now = math.floor(event_ms / 1000 / tonumber(idempotency_window_s))
    if epoch_now ~= tonumber(idempotency_epoch) then
        return { ANSWER.epoch, epoch_now }
    end
    return nil
end)
