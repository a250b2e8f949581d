#!lua
-- Reserves the idempotency key of a change that is made in PostgreSQL, so that no operation on a code has it for another request.
-- Answers {'claimed'}, also if the same change reserved the key before; {'idempotency_key_reused'}: another request used it; or
-- {'epoch', n}: idempotency records now belong to epoch n.

-- @include lib/clock
-- @include lib/text

local function main()
    local records_key, before_key, events_key = KEYS[1], KEYS[2], KEYS[3]
    local digest, fingerprint, idempotency_epoch, idempotency_window_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

    local _, event_ms = read_clock(events_key)
    local epoch_now = math.floor(event_ms / 1000 / tonumber(idempotency_window_s))
    if epoch_now ~= tonumber(idempotency_epoch) then
        return { ANSWER.epoch, text(epoch_now) }
    end
    local record = redis.call('HGET', records_key, digest) or redis.call('HGET', before_key, digest)
    if record then
        return { string.sub(record, 1, #fingerprint) == fingerprint and ANSWER.claimed or ANSWER.idempotency_key_reused }
    end
    redis.call('HSET', records_key, digest, fingerprint .. ANSWER.claimed)
    redis.call('EXPIREAT', records_key, text((epoch_now + 2) * tonumber(idempotency_window_s)), 'NX')
    return { ANSWER.claimed }
end
