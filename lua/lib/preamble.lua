-- The preamble of every script that looks at codes: the keys and arguments that all of them take, and the replies to a
-- whole call of which nothing was done: {'unpublished'}: this shard knows no configuration; {'stale'}: it knows a later
-- one than the caller; {'epoch', n}: idempotency records are now kept under epoch n.
-- `packed` is one array (MessagePack) of the fields of all attempts, one behind another: an argument for each field
-- costs more on both sides. Each attempt gets an answer of its own: {'ok', answer…}.
local events_key, version_key, holds_key, expiry_key, held_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local shard, version, idempotency_epoch, idempotency_window_s, packed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local fields = cmsgpack.unpack(packed)

-- @include lib/clock

local shard_version = redis.call('GET', version_key)
if not shard_version then
    return { ANSWER.unpublished }
elseif tonumber(shard_version) > tonumber(version) then
    return { ANSWER.stale }
end
local now_ms, event_ms, event_seq = read_clock(events_key)
local epoch_now = math.floor(event_ms / 1000 / tonumber(idempotency_window_s))
if epoch_now ~= tonumber(idempotency_epoch) then
    return { ANSWER.epoch, epoch_now }
end
