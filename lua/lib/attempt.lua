-- The attempt under consideration: the fields that every script takes for each of them, first.
-- Those named _at are positions in KEYS, 0 for none; of state_at, 0 means that the code is void
-- by its batch or a range of serials, whatever its own state. What is no text is an argument of its own: there
-- _at is the position in ARGV.
-- One table, filled again for each attempt: locals that many functions share make every call dearer.
local attempt = {
    campaign_at = 0, state_at = 0, used_at = 0, users_at = 0, receipts_at = 0, receipts_before_at = 0,
    offset = '', used_field = '', user_digest = '', receipt_digest = '', fingerprint = '',
    batch = '', serial = '', last4 = '', user = '', amount = '', order = '', key = '', actor = '',
    counted_read = false, used_read = false, -- what was read of its user and its code (lib/unit_of_work)
}

local function read_attempt(at)
    local campaign_at, state_at, used_at, users_at, receipts_at, receipts_before_at,
        offset, used_field, user_digest_at, receipt_digest_at, fingerprint_at,
        batch, serial, last4, user, amount, order, key, actor = unpack(fields, at, at + 18)
    attempt.campaign_at, attempt.state_at, attempt.used_at, attempt.users_at = campaign_at, state_at, used_at, users_at
    attempt.receipts_at, attempt.receipts_before_at = receipts_at, receipts_before_at
    attempt.offset, attempt.used_field, attempt.user_digest = offset, used_field, ARGV[user_digest_at]
    attempt.receipt_digest, attempt.fingerprint = ARGV[receipt_digest_at], ARGV[fingerprint_at]
    attempt.batch, attempt.serial, attempt.last4, attempt.user = batch, serial, last4, user
    attempt.amount, attempt.order, attempt.key, attempt.actor = amount, order, key, actor
    attempt.counted_read, attempt.used_read = false, false
end
