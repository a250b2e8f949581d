-- The current attempt: the fields that every script takes. A script's own fields are parameters of its function.
-- Fields with names in _at are positions in KEYS, 0 for none. If state_at is 0, the code is void by its batch or by a range
-- of serials, and its own state does not matter. Binary fields are arguments of their own; their _at is a position in ARGV.
-- `about` and `cause` are parts of the attempt's events, as JSON (lib/event_line); lib/description reads them.
-- There is one table, which is filled again for each attempt. Locals that many functions share would cost more.
local attempt = {
    campaign_at = 0, state_at = 0, used_at = 0, users_at = 0, idempotency_at = 0, idempotency_before_at = 0,
    offset = '', used_field = '', user_digest = '', idempotency_digest = '', fingerprint = '',
    about = '', amount = '', cause = '',
    description = false, -- what `about` and `cause` say (lib/description)
    counted_read = false, used_read = false, -- the counts of its user and its code as read from Redis (lib/usage)
}

-- Iterates over all attempts: `for last in next_attempt, own_fields, 0 do`. `own_fields` is the number of the script's own
-- fields. `last` is the position of the attempt's last field. The script's own fields are the last ones, up to there.
local function next_attempt(own_fields, last_before)
    local at = last_before + 1
    if not fields[at] then
        return nil
    end
    local last = at + 13
    local campaign_at, state_at, used_at, users_at, idempotency_at, idempotency_before_at,
        offset, used_field, user_digest_at, idempotency_digest_at, fingerprint_at,
        about, amount, cause = unpack(fields, at, last)
    attempt.campaign_at, attempt.state_at, attempt.used_at, attempt.users_at = campaign_at, state_at, used_at, users_at
    attempt.idempotency_at, attempt.idempotency_before_at = idempotency_at, idempotency_before_at
    attempt.offset, attempt.used_field, attempt.user_digest = offset, used_field, ARGV[user_digest_at]
    attempt.idempotency_digest, attempt.fingerprint = ARGV[idempotency_digest_at], ARGV[fingerprint_at]
    attempt.about, attempt.amount, attempt.cause = about, amount, cause
    attempt.description, attempt.counted_read, attempt.used_read = false, false, false
    return last + own_fields
end
