-- Receipts: what an idempotency key was answered. A value is the fingerprint of the
-- request (8 bytes) and the answer behind it.

-- @include lib/unit_of_work

local FINGERPRINT_LENGTH, HALF = 8, 4
local REBUILT, UNKNOWN = string.rep('\0', HALF), string.rep('\0', HALF) -- engine/store/idempotency.py
-- Answers that a later attempt with the same key shall not get again: nothing was decided.
local NOT_KEPT = { unpublished = true, due = true, changed = true, held_by_another_order = true }

-- A receipt that was made again from the ledger knows the first half only, if it knows the code.
local function is_of_this_request(receipt)
    local fingerprint = string.sub(receipt, 1, FINGERPRINT_LENGTH)
    if fingerprint == attempt.fingerprint then
        return true
    elseif string.sub(fingerprint, HALF + 1) ~= REBUILT then
        return false
    end
    local known, asked = string.sub(fingerprint, 1, HALF), string.sub(attempt.fingerprint, 1, HALF)
    return known == asked or asked == UNKNOWN
end

-- `replayed <the first answer>`, or `idempotency_key_reused`; nil where the key is new, or there is none.
local function read_receipt()
    if attempt.receipts_at == 0 then
        return nil
    end
    local receipt = slots(pending.receipts, attempt.receipts_at)[attempt.receipt_digest]
        or redis.call('HGET', KEYS[attempt.receipts_at], attempt.receipt_digest)
        or redis.call('HGET', KEYS[attempt.receipts_before_at], attempt.receipt_digest)
    if not receipt then
        return nil
    elseif not is_of_this_request(receipt) then
        return 'idempotency_key_reused'
    end
    return 'replayed ' .. string.sub(receipt, FINGERPRINT_LENGTH + 1)
end

local function keep_receipt(answer)
    if attempt.receipts_at ~= 0 and not NOT_KEPT[string.match(answer, '^%S+')] then
        slots(pending.receipts, attempt.receipts_at)[attempt.receipt_digest] = attempt.fingerprint .. answer
    end
end
