-- Reads and writes idempotency records: the answer that an idempotency key got. A record is the fingerprint of the request
-- (8 bytes), then the answer; `claimed`, if the key belongs to the request, but the request has no final answer yet.
-- Between the two, the record of a signed request has one byte with the number of nonces that it was signed with, and 8 bytes
-- of the hash of each, the newest first. An answer begins with a letter, so the byte cannot be taken for one.

-- @include lib/unit_of_work

local FINGERPRINT_LENGTH, HALF = 8, 4
local NONCE_LENGTH, NONCES_MAX = 8, 8
local REBUILT, UNKNOWN = '\0\0\0\0', '\0\0\0\0' -- engine/store/idempotency.py
local NOT_KEPT = ANSWERS.not_kept

-- A request that does not name its code has UNKNOWN as its first half, but its record may have been rebuilt with a known one.
-- A record that was rebuilt from an event without a fingerprint has REBUILT as its second half.
local function is_of_this_request(record)
    local fingerprint = string.sub(record, 1, FINGERPRINT_LENGTH)
    local asked = string.sub(ARGV[idempotency_digest_at[attempt] + 1], 1, FINGERPRINT_LENGTH)
    if fingerprint == asked then
        return true
    end
    local known, digest = string.sub(fingerprint, 1, HALF), string.sub(fingerprint, HALF + 1)
    local asked_known, asked_digest = string.sub(asked, 1, HALF), string.sub(asked, HALF + 1)
    return (asked_known == known or asked_known == UNKNOWN) and (asked_digest == digest or digest == REBUILT)
end

-- Returns the nonces in a record, and where its answer begins.
local function split_record(record)
    local at = FINGERPRINT_LENGTH + 1
    local count = string.byte(record, at)
    if not count or count > NONCES_MAX then
        return '', at
    end
    local answer_at = at + 1 + count * NONCE_LENGTH
    return string.sub(record, at + 1, answer_at - 1), answer_at
end

-- Returns the nonces with that of the current attempt; nil if it is among them already.
local function add_nonce(nonces)
    local nonce = string.sub(ARGV[idempotency_digest_at[attempt] + 1], FINGERPRINT_LENGTH + 2)
    for at = 1, #nonces, NONCE_LENGTH do
        if string.sub(nonces, at, at + NONCE_LENGTH - 1) == nonce then
            return nil
        end
    end
    return string.sub(nonce .. nonces, 1, NONCES_MAX * NONCE_LENGTH)
end

-- For an attempt whose key has a record with nonces: the beginning of its next record, up to the answer.
local beginnings

local function is_signed()
    return #ARGV[idempotency_digest_at[attempt] + 1] > FINGERPRINT_LENGTH
end

-- Returns where the answer begins in a record of this request, after the attempt's nonce was added to `beginnings`; nil if
-- this nonce was used before. An attempt that is not signed adds none.
local function use_nonce(record)
    local nonces, answer_at = split_record(record)
    if is_signed() then
        nonces = add_nonce(nonces)
        if not nonces then
            return nil
        end
        beginnings[attempt] = string.sub(record, 1, FINGERPRINT_LENGTH) .. string.char(#nonces / NONCE_LENGTH) .. nonces
    elseif nonces ~= '' then
        beginnings[attempt] = string.sub(record, 1, answer_at - 1)
    end
    return answer_at
end

-- For an attempt whose key is reserved for it: the record.
local reserved

each_call(function()
    beginnings, reserved = {}, {}
end)

-- Returns `replayed <the first answer>`, `idempotency_key_reused` or `request_replayed`; nil if the key is new or has no answer
-- yet, or if there is no key.
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
    local answer_at = use_nonce(record)
    if not answer_at then
        return ANSWER.request_replayed
    end
    local answer = string.sub(record, answer_at)
    if answer == ANSWER.claimed then
        reserved[attempt] = record
        return nil -- the nonce is kept with the answer: if there is none, the engine calls again with the same nonce
    end
    if is_signed() then
        slots(work.idempotency, at)[digest] = beginnings[attempt] .. answer
    end
    return ANSWER.replayed .. ' ' .. answer
end

-- A code may soon be held no longer, so that answer is not kept. But the key is: with any number of shards, nobody may use it
-- for another request. That is written once: a retry on a held code writes as little as one on a spent code.
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
        local record = (beginnings[attempt] or ARGV[digest_at + 1]) .. answer
        if record ~= reserved[attempt] then
            slots(work.idempotency, at)[ARGV[digest_at]] = record
        end
    end
end
