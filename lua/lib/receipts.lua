-- Receipts: what an idempotency key was answered. A value is the fingerprint of the
-- request (8 bytes) and the answer behind it.

local FINGERPRINT_LENGTH = 8

local function answer_from_receipt(receipt, fingerprint)
    if string.sub(receipt, 1, FINGERPRINT_LENGTH) ~= fingerprint then
        return 'idempotency_key_reused'
    end
    return 'replayed ' .. string.sub(receipt, FINGERPRINT_LENGTH + 1)
end
