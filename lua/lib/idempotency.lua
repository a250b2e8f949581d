-- Reads and writes idempotency records: the answer that an idempotency key got. A record is the fingerprint of the request
-- (8 bytes), then the answer; `claimed`, if the key belongs to the request, but the request has no final answer yet.

-- @include lib/unit_of_work

local FINGERPRINT_LENGTH, HALF = 8, 4
local REBUILT, UNKNOWN = '\0\0\0\0', '\0\0\0\0' -- engine/store/idempotency.py
local NOT_KEPT = ANSWERS.not_kept

-- A request that does not name its code has UNKNOWN as its first half, but its record may have been rebuilt with a known one.
-- A record that was rebuilt from an event without a fingerprint has REBUILT as its second half.
local function is_of_this_request(record)
    local fingerprint, asked = string.sub(record, 1, FINGERPRINT_LENGTH), ARGV[idempotency_digest_at[attempt] + 1]
    if fingerprint == asked then
        return true
    end
    local known, digest = string.sub(fingerprint, 1, HALF), string.sub(fingerprint, HALF + 1)
    local asked_known, asked_digest = string.sub(asked, 1, HALF), string.sub(asked, HALF + 1)
    return (asked_known == known or asked_known == UNKNOWN) and (asked_digest == digest or digest == REBUILT)
end

-- Returns `replayed <the first answer>`, or `idempotency_key_reused`; nil if the key is new or has no answer yet, or if there
-- is no key.
local function read_idempotency_record()
    local at = idempotency_at[attempt]
    if not at then
        return nil
    end
    local digest = ARGV[idempotency_digest_at[attempt]]
    local record = slots(work.idempotency, at)[digest]
        or redis.call('HGET', KEYS[at], digest)
        or redis.call('HGET', KEYS[at + 1], digest)
    if not record then
        return nil
    elseif not is_of_this_request(record) then
        return ANSWER.idempotency_key_reused
    end
    local answer = string.sub(record, FINGERPRINT_LENGTH + 1)
    return answer ~= ANSWER.claimed and ANSWER.replayed .. ' ' .. answer or nil
end

-- A code may soon be held no longer, so that answer is not kept. But the key is: with any number of shards, nobody may use it
-- for another request.
local function keep_idempotency_record(answer)
    local at = idempotency_at[attempt]
    if not at then
        return
    end
    local word = string.match(answer, '^%S+')
    if word == ANSWER.held_by_another_order then
        word, answer = ANSWER.claimed, ANSWER.claimed
    end
    if not NOT_KEPT[word] then
        local digest_at = idempotency_digest_at[attempt]
        slots(work.idempotency, at)[ARGV[digest_at]] = ARGV[digest_at + 1] .. answer
    end
end
