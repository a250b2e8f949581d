-- The attempts of the call. Each field of an attempt is a column: it has the field of each attempt, under the number of the
-- attempt. `attempt` is the number of the current one. From `amount` on, a column has only the attempts that have the field.
-- Names in _at are positions in KEYS. If state_at is 0, the code is void by its batch or by a range of serials, and its own
-- state does not matter. The records of the window before are in the key after idempotency_at. Binary fields are arguments
-- of their own: user_digest_at and idempotency_digest_at are positions in ARGV, and the request's fingerprint is the
-- argument after the digest of its idempotency key.
-- `about` and `cause` are parts of the attempt's events, as JSON (lib/event_line); lib/description reads them.
local campaign_at, state_at, offset, about, cause, amount, used_at, used_field, users_at, user_digest_at,
    idempotency_at, idempotency_digest_at
local OWN_FIRST = 13 -- from here on, columns have the fields that only this script has

local attempt
local own_values

each_call(function()
    campaign_at, state_at, offset, about, cause, amount, used_at, used_field, users_at, user_digest_at,
        idempotency_at, idempotency_digest_at = unpack(columns)
    attempt, own_values = 1, {}
end)

-- The current attempt's fields that only this script has.
local function own_fields()
    for number = OWN_FIRST, #columns do
        own_values[number] = columns[number][attempt]
    end
    return unpack(own_values, OWN_FIRST, #columns)
end
